"""The blocking driver: `Noukai`, `Flow`, `Job`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self, Unpack
from uuid import UUID

from noukai_core._api import endpoints
from noukai_core._blocking_batch import JobBatch
from noukai_core._engine.batch import Batch
from noukai_core._engine.batch_options import BatchOptions
from noukai_core._engine.effects import (
    Effect,
    Effects,
    Emit,
    EmitStep,
    FollowEffects,
    Receive,
    Send,
    Sleep,
    T,
    send_with_retries,
)
from noukai_core._engine.sessions import jobs_in, running_in
from noukai_core._handles import FlowHandle, JobHandle, listing_runs, reading_ended_runs
from noukai_core._http.connection import Connection
from noukai_core._http.event_receiver import EventReceiver
from noukai_core._options import ClientArguments, ClientOptions, describe, refuse_unknown
from noukai_core._validation import Version, hidden
from noukai_core.batch import BatchLedger, JobInput, MemoryLedger
from noukai_core.job_request import JobRequest
from noukai_core.models import ExecuteResult, JobAccepted, JobStatus, KeyInfo, RunTrace, TraceStep
from noukai_core.runs import EndedRuns, FlowRun, RunsCursor
from noukai_core.submission import Submission
from noukai_core.telemetry import JobSpan

if TYPE_CHECKING:
    import httpx
    from pydantic import BaseModel


class Runner:
    """Runs the effects of decisions: sends what they ask for, and sleeps."""

    def __init__(self, settings: ClientOptions, transport: httpx.BaseTransport | None) -> None:
        self._connection = Connection(settings, transport)
        self._key = settings.api_key
        self._submitting = threading.BoundedSemaphore(settings.max_concurrent_submissions)

    def run(self, effects: Effects[T]) -> T:
        """Run effects to their end, and return what was decided."""
        shown = self.show(effects)
        while True:
            try:
                next(shown)
            except StopIteration as end:
                decided: T = end.value
                return decided

    def show(self, effects: Effects[T]) -> Generator[JobStatus, None, T]:
        """Run effects, and pass on what they emit."""
        outcome: Any = None
        try:
            while True:
                try:
                    effect = effects.send(outcome)
                except StopIteration as end:
                    decided: T = end.value
                    return decided
                if isinstance(effect, Emit):
                    yield effect.status
                outcome = self._perform(effect)
        finally:
            effects.close()

    def follow(self, effects: FollowEffects) -> Generator[TraceStep, None, None]:
        """Run effects that receive a stream, and pass on the steps that they emit."""
        receiver = EventReceiver(self._connection, self._key)
        outcome: Any = None
        try:
            while True:
                try:
                    effect = effects.send(outcome)
                except StopIteration:
                    return
                outcome = None
                match effect:
                    case Receive():
                        outcome = receiver.next(effect.call)
                    case EmitStep():
                        yield effect.step
                    case _:
                        outcome = self._perform(effect)
        finally:
            effects.close()
            receiver.close()

    def jobs(
        self, batch: Batch, inputs: Iterable[JobInput], ledger: BatchLedger, *, cancel_on_close: bool
    ) -> JobBatch:
        """Return the outcomes of a batch."""
        return JobBatch(
            self._send,
            self._connection.check_process,
            batch,
            inputs,
            ledger,
            cancel_on_close=cancel_on_close,
        )

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._connection.is_closed

    def close(self) -> None:
        """Close the connections; a second time does nothing."""
        self._connection.close()

    def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, Sleep) and effect.seconds > 0:
            time.sleep(min(effect.seconds, threading.TIMEOUT_MAX))
        return self._send(effect) if isinstance(effect, Send) else None

    def _send(self, request: Send, wanted: Callable[[], bool] = lambda: True) -> Any:
        """Send a request, unless it is not wanted any more when its turn to submit comes."""
        call = request.call
        if call.submits:
            with self._submitting:
                if not wanted():
                    return None
                response = self._connection.send(call, request.timeout)
        else:
            response = self._connection.send(call, request.timeout)
        return endpoints.outcome(call, response, self._key)


class Noukai:
    """A client of the Noukai job API. It is a context manager.

    Threads may share it. Processes may not: after a fork, make a new one, since two processes that write to
    the same connections get each other's responses. In the child, one that was used before raises an error.

    Args:
        api_key: The key; by default what `NOUKAI_API_KEY` holds.
        base_url: The address of the API; by default `NOUKAI_BASE_URL`, else the service itself, or with
            `NOUKAI_ENV=dev` a server on this machine at port 8080.
        org: With `project`, lets flows be named by their slug alone.
        project: See `org`.
        timeout: Seconds that one request may take. A blocking client gives them to connecting, to sending and
            to the whole response, one after the other.
        poll_interval: Seconds between two polls of a job, within a tenth of a second. By default, the pause
            grows with the age of the job: a tenth of it, between 1 and 60 seconds.
        retry_timeout: Seconds without a successful response after which transient errors are raised.
        not_found_grace: Seconds after a submission in which the server may not know the job yet.
        recovery_timeout: Seconds within which the job of a submission whose outcome is unknown appears in the
            server's list; 0 disables that lookup.
        max_polls_per_second: The rate limit for all jobs that this process waits for with this key.
        max_concurrent_submissions: The most submissions that this client sends at the same time. Others wait
            for their turn, however long. A client opens at most 32 more connections.
        max_response_bytes: The largest response that is read. The memory that its content takes is limited as
            well: to this, or to five times the response.
        max_followed_jobs: The most jobs whose steps this process follows at the same time. Each takes a
            connection.
        allow_insecure_http: Whether the key may be sent over plain HTTP to another machine.
        transport: An httpx transport to send requests through, for tests and unusual networks.

    Raises:
        InvalidInputError: An argument is wrong.
        TypeError: There is no argument of that name.

    Example:
        >>> from noukai_core import Noukai
        >>> from noukai_core.emulator import Emulator
        >>> with Emulator() as emulator, Noukai("nk_test_key", base_url=emulator.base_url) as client:
        ...     job = client.flow("acme/spelling/grade-3").job(message="Helo")
        ...     job.wait(timeout_ms=60_000).output["message"]
        'Helo'
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        **options: Unpack[ClientArguments],
    ) -> None:
        api_key = hidden(api_key)
        refuse_unknown(self, options)
        self._settings = ClientOptions.of(api_key=api_key, **options)
        self._runner = Runner(self._settings, transport)

    def flow(self, path: str) -> Flow:
        """Name a flow, as `"org/project/slug"` or, inside this client's org and project, as a slug.

        Raises:
            InvalidInputError: It is not the address of a flow.
        """
        return Flow(self._runner, self._settings.flow_path(path), self._settings)

    def verify_key(self) -> KeyInfo:
        """Check the key. Noukai does not count this as a request.

        Returns:
            What the key gives access to.

        Raises:
            AuthenticationError: The key is wrong or revoked.
            APIError: The server rejected the request otherwise, or was not reached.
        """
        return self._runner.run(send_with_retries(endpoints.verify_key(), time.monotonic))

    def runs(self, flow_id: str, *, state: str | None = None, limit: int = 100) -> tuple[FlowRun, ...]:
        """List the newest runs of a flow, the newest first.

        Args:
            flow_id: The flow, by the id that the server gave it, such as `job.accepted.flow_id`.
            state: Only the runs in this state: `running`, `completed`, `failed` or `cancelled`.
            limit: How many runs, up to 100. The server lists no older ones.

        Raises:
            FlowNotFoundError: There is no such flow.
            APIError: The server rejected the request otherwise, or was not reached.
        """
        return self._runner.run(listing_runs(flow_id, state, limit))

    def ended_runs(self, flow_id: str, cursor: RunsCursor | None = None) -> EndedRuns:
        """Read which runs of a flow have ended since the previous read.

        Store the cursor of each read, and pass it to the next one: then no run is missed and none comes
        twice, as long as at most a hundred runs of each state begin between two reads.

        Args:
            flow_id: The flow, by the id that the server gave it, such as `job.accepted.flow_id`.
            cursor: Where the previous read ended. The first read, without one, returns no run.

        Raises:
            FlowNotFoundError: There is no such flow.
            APIError: The server rejected the request otherwise, or was not reached.
        """
        return self._runner.run(reading_ended_runs(flow_id, cursor))

    @property
    def is_closed(self) -> bool:
        """Whether the client is closed, and sends nothing more."""
        return self._runner.is_closed

    def close(self) -> None:
        """Close the connections. Closing twice is fine."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return describe(self)


class Flow(FlowHandle[Runner]):
    """A flow that jobs can be submitted to. Made by `Noukai.flow`."""

    def job(
        self,
        message: str | None = None,
        *,
        parameters: Mapping[str, Any] | None = None,
        block_overrides: Mapping[str, Mapping[str, Any]] | None = None,
        trace: bool = False,
        version: Version = "production",
        session_id: str | UUID | None = None,
        callback_url: str | None = None,
        callback_events: Sequence[str] | None = None,
        submission: Submission | None = None,
    ) -> Job:
        """Submit a job, once: whatever happens to the request, at most one job comes of it.

        Args:
            message: The input of the flow. Required unless `parameters` is set.
            parameters: Named inputs that JSON can carry.
            block_overrides: Settings of single steps, by step id.
            trace: Whether the run is to be traced.
            version: `"production"`, `"draft"` or the number of a published version.
            session_id: A UUID of your own that groups jobs. With one, a submission whose outcome is unknown
                is not looked up, and raises `SubmissionUnknownError`.
            callback_url: A public https address that Noukai calls when the job has ended.
            callback_events: Which of `flow.completed` and `flow.failed` it is called for.
            submission: The identity, if you keep it yourself; by default a new one. Passing the same one
                again gives the same job, in this process and in a later one.

        Returns:
            The job that was accepted.

        Raises:
            InvalidInputError: An argument is wrong; nothing was sent.
            PermanentError: The server rejected the job; there is none.
            ClientClosedError: The client was closed before anything was sent.
            APIError: The server accepted no job for `retry_timeout` seconds, or lost each of several
                requests; there is none.
            SubmissionUnknownError: Whether there is a job could not be determined.
        """
        request = JobRequest(
            flow=self.path,
            message=message,
            parameters=parameters,
            block_overrides=block_overrides,
            version=version,
            trace=trace,
            session_id=session_id,
            callback_url=callback_url,
            callback_events=callback_events,
        )
        return self.submit(request, submission=submission)

    def submit(self, request: JobRequest, *, submission: Submission | None = None) -> Job:
        """Submit the job of a request, once; the errors are those of `job`.

        Args:
            request: The inputs of the job. Its flow must be this one.
            submission: The identity, if you keep it yourself. By default a new one.
        """
        span = JobSpan(self.path)
        effects = self._submitting(request, submission, span)
        submitted = self._runner.run(effects)
        return self._job(submitted.job.id, submitted.at, submitted.job, span=span)

    def jobs(
        self,
        inputs: Iterable[JobInput],
        *,
        version: Version = "production",
        trace: bool = False,
        in_order: bool = False,
        max_concurrency: int = 1000,
        timeout: float | None = None,
        poll_interval: float | None = None,
        cancel_on_timeout: bool | Callable[[], bool] = False,
        max_cost_usd: Decimal | float | str | None = None,
        spent_usd: Decimal | float | str | None = Decimal(0),
        stop_after_failures: int | float | None = None,
        stopped: str | None = None,
        ledger: BatchLedger | None = None,
        batch_id: str | UUID | None = None,
        detach: bool = False,
        cancel_on_close: bool = False,
        output_type: type[BaseModel] | None = None,
    ) -> JobBatch:
        """Run many jobs, and return their outcomes as they end.

        Inputs are read as jobs go out, and no more of them are kept than jobs run. Jobs go out in sessions of
        up to a hundred, so that one request tells the states of all of them; a request with a `session_id` of
        its own is polled by itself.

        Args:
            inputs: One for each job: a message, a mapping with `message`, `parameters`, `block_overrides` and
                `key`, or a `JobRequest`. An invalid input is its own outcome; an error of the iterable ends
                the batch, and so does, with `max_cost_usd`, an invalid input that comes before the first job.
            version: The version of the flow, for inputs that are no `JobRequest`.
            trace: Whether runs are traced, likewise. The outcomes then have tokens and cost.
            in_order: Whether the outcomes come in the order of the inputs.
            max_concurrency: The most jobs that run at the same time.
            timeout: The longest wait for one job in seconds.
            poll_interval: Seconds between two polls. By default the pause grows with the job's age.
            cancel_on_timeout: Whether a job that times out is cancelled, or else left running; a function is
                called for each such job, and no coroutine.
            max_cost_usd: Once the jobs that have ended cost so much, or once the cost of one is not known,
                nothing more is submitted, and the rest are `not_submitted`. Needs `trace`. Those that run by
                then may cost more.
            spent_usd: What earlier runs of this batch cost, which counts towards `max_cost_usd`; `None` if
                that is not known, and then nothing is submitted under one.
            stop_after_failures: Likewise, once so many jobs did not complete; or so large a share of those
                that have ended, as a number below 1.
            stopped: Why nothing is submitted from the beginning, such as a ledger that cannot be read
                completely. What it knows is attached to, and all other inputs are `not_submitted`.
            ledger: What a rerun needs is kept there. It takes what has completed, attaches to what runs, and
                submits what is missing or did not complete. By default nothing outlives the process.
            batch_id: A UUID, the same for each run of the batch. The ids of submissions follow from it.
            detach: Whether to end as soon as nothing more can be submitted, and to leave the jobs running. A
                later call with the same ledger goes on with them.
            cancel_on_close: Whether jobs are cancelled when the iterator is closed before its end, or is
                interrupted, as by Ctrl-C. By default they are left running.
            output_type: A pydantic model. Outputs are its instances. An output that is not such an instance
                makes its outcome `invalid_output`; a rerun submits a new job for it.

        Raises:
            InvalidInputError: An argument is wrong; nothing was sent.

        Example:
            >>> from noukai_core import Noukai
            >>> from noukai_core.emulator import Emulator
            >>> with Emulator() as emulator, Noukai("nk_test_key", base_url=emulator.base_url) as client:
            ...     flow = client.flow("acme/spelling/grade-3")
            ...     for outcome in flow.jobs(["Helo", "wrold"], in_order=True):
            ...         print(outcome.state, outcome.output["message"])
            completed Helo
            completed wrold
        """
        options = BatchOptions(
            version=version,
            trace=trace,
            in_order=in_order,
            max_concurrency=max_concurrency,
            timeout=timeout,
            poll_interval=poll_interval,
            cancel_on_timeout=cancel_on_timeout,
            max_cost_usd=max_cost_usd,
            spent_usd=spent_usd,
            stop_after_failures=stop_after_failures,
            stopped=stopped,
            batch_id=batch_id,
            detach=detach,
            output_type=output_type,
        )
        batch = self._batch(inputs, options)
        return self._runner.jobs(
            batch, inputs, MemoryLedger() if ledger is None else ledger, cancel_on_close=cancel_on_close
        )

    def wait_for_sessions(
        self,
        sessions: Mapping[str, int],
        *,
        until: int = 0,
        age: float = 0.0,
        timeout: float | None = None,
        poll_interval: float | None = None,
        report: Callable[[int], None] | None = None,
    ) -> int:
        """Wait for the jobs of a batch by the lists of their sessions, without the jobs' ids.

        One request tells the states of all jobs of a session. It is a hint: a job that the list does not show
        counts as one that has not ended, and whether one has ended only the job itself says. A session with
        more jobs than the batch knows, as after a submission with an unknown outcome, is waited for until
        none of them runs.

        Args:
            sessions: How many jobs each session has, finished or not.
            until: Return when at most this number of jobs has not ended.
            age: How long ago the last job was submitted, in seconds. The pause between polls grows with it.
            timeout: Return after this time in any case, in seconds.
            poll_interval: A fixed pause between polls, in seconds.
            report: Is called after each round of polls with how many jobs have not ended.

        Returns:
            How many jobs have not ended.

        Raises:
            APIError: The server rejected the request, or did not respond for too long.
        """
        return self._runner.run(
            self._waiting_for_sessions(sessions, until, age, timeout, poll_interval, report)
        )

    def running_in(self, session_id: str) -> tuple[list[Job], int]:
        """Return the jobs that a session lists and that have not ended, and how many have.

        Args:
            session_id: The session.

        Raises:
            APIError: The list cannot be read.
        """
        job_ids, ended = self._runner.run(running_in(session_id, time.monotonic))
        return [self._job(job_id, None, None) for job_id in job_ids], ended

    def jobs_in(self, session_id: str) -> frozenset[str]:
        """Return the ids of all jobs that a session lists, of which some may have ended.

        Args:
            session_id: The session.

        Raises:
            APIError: The list cannot be read.
        """
        return self._runner.run(jobs_in(session_id, time.monotonic))

    def attach(
        self,
        job_id: str,
        *,
        submitted_at: datetime | None = None,
        last_status: JobStatus | None = None,
    ) -> Job:
        """Return the handle of a job that exists. No request is made.

        Args:
            job_id: The job.
            submitted_at: When it was submitted, with a time zone. Just after a submission the server may not
                know the job yet; with this time given, that is waited out.
            last_status: What is known of the job already. A wait logs only what differs from it.

        Raises:
            InvalidInputError: The id or the time is wrong.
        """
        return self._job(job_id, submitted_at, None, last_status)

    def find(self, submission: Submission) -> Job | None:
        """Look up the job of a submission. Nothing is submitted.

        Args:
            submission: The identity that the submission was made with, and with no session id of your own.

        Returns:
            The job; or `None` when the server knows of none, which just after a submission proves nothing.

        Raises:
            SubmissionUnknownError: The server lists something that may be the job and cannot be read.
            PermanentError: The server rejected the request.
            TransientError: The server was not reached.
        """
        found = self._runner.run(self._finding(submission))
        return None if found is None else self._job(found.id, submission.last_sent_at, None)

    def _job(
        self,
        job_id: str,
        submitted_at: datetime | None,
        accepted: JobAccepted | None,
        last_status: JobStatus | None = None,
        span: JobSpan | None = None,
    ) -> Job:
        return Job(
            self._runner,
            job_id,
            self._path,
            self._settings,
            submitted_at=submitted_at,
            accepted=accepted,
            last_status=last_status,
            span=span,
        )


class Job(JobHandle[Runner]):
    """A job that exists. Made by `Flow.job` and `Flow.attach`."""

    def status(self) -> JobStatus:
        """Poll the job once, and again for a few seconds after a transient error.

        A job that was submitted a moment ago, and that the server does not know yet, is shown as pending.

        Raises:
            JobNotFoundError: The server does not know the job.
            PermanentError: The server rejected the request.
            TransientError: The server was not reached.
        """
        return self._runner.run(self._polling())

    def wait(self, *, timeout_ms: float | None = None, poll_interval: float | None = None) -> ExecuteResult:
        """Wait for the end of the job.

        Args:
            timeout_ms: Milliseconds to wait at most; by default there is no limit.
            poll_interval: Seconds between two polls; by default the pause grows with the age of the job.

        Returns:
            The result of the completed job.

        Raises:
            JobFailedError: The job failed.
            JobCancelledError: The job was cancelled on the Noukai side.
            JobTimeoutError: The deadline passed, and the job was left running. It is a `TimeoutError` too.
            JobNotFoundError: The server does not know the job.
            PermanentError: The server rejected the request.
            TransientError: No poll succeeded for `retry_timeout` seconds.
        """
        return self._runner.run(self._waiting(timeout_ms, poll_interval)).result_or_raise()

    def watch(
        self,
        *,
        timeout: float | None = None,
        poll_interval: float | None = None,
        max_poll_bytes: int | None = None,
        log_changes: bool = True,
    ) -> Generator[JobStatus, None, JobStatus]:
        """Wait for the end of the job, and yield what is new: its state or its progress.

        The end of the job is yielded last. The errors are those of `wait`, but for that.

        Args:
            timeout: Seconds until the deadline; `None` for none.
            poll_interval: A fixed pause between polls, in seconds.
            max_poll_bytes: For a wait that needs the state alone: how many bytes of each response are read.
                The statuses then have no result. A longer response is read up to there; if its state comes
                later, the wait ends in a `ResponseTooLargeError`.
            log_changes: Whether each change is logged, and not only the end of the job.
        """
        return self._runner.show(self._watching(timeout, poll_interval, max_poll_bytes, log_changes))

    def cancel(self) -> None:
        """Cancel the job. This has no effect on one that has ended.

        No source documents how Noukai cancels a job; the route that is used here is an assumption.

        Raises:
            CancelUnsupportedError: This server has no way to cancel a job, which was left running.
            JobNotFoundError: The server does not know the job.
            TransientError: The server was not reached, nor in the few seconds after the first failure.
        """
        self._runner.run(self._cancelling())

    def trace(self) -> RunTrace:
        """Read how the run went, step by step, with the tokens and the cost that the server reports.

        Raises:
            APIError: It cannot be read: some deployments allow it to no API key.
        """
        return self._runner.run(self._tracing())

    def steps(self, *, skip: int = 0) -> Generator[TraceStep, None, None]:
        """Follow the steps of the job live, and yield each when it starts, completes or fails.

        It ends when the job has ended; only a poll says how. A stream that breaks is opened again, and what
        the server repeats is not yielded again. The steps are for people to see: some may be missing, and
        `wait` needs none of them.

        Args:
            skip: How many steps to pass over at first, because they were yielded before.

        Raises:
            APIError: The stream is refused (some deployments allow it to no API key), it breaks for too long,
                or this process follows `max_followed_jobs` jobs already.
        """
        return self._runner.follow(self._following(skip))
