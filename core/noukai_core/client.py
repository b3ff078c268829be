"""The blocking shell: ``Noukai``, ``Flow``, ``Job``."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from . import calls
from .handles import FlowHandle, JobHandle
from .http import Connection
from .inputs import Version, hidden
from .models import ExecuteResult, JobAccepted, JobStatus, KeyInfo, RunTrace
from .settings import Settings, shown
from .steps import Pause, Request, Show, Steps, T, send_patiently
from .submission import Submission

if TYPE_CHECKING:
    import httpx


class Runner:
    """Runs the steps of decisions: sends what they ask for, and sleeps when they pause."""

    def __init__(self, settings: Settings, transport: httpx.BaseTransport | None) -> None:
        self._connection = Connection(settings, transport)
        self._key = settings.api_key
        self._submitting = threading.BoundedSemaphore(settings.submissions_in_flight)

    def run(self, steps: Steps[T]) -> T:
        """Run steps to their end, and return what they decided."""
        shown = self.show(steps)
        while True:
            try:
                next(shown)
            except StopIteration as end:
                decided: T = end.value
                return decided

    def show(self, steps: Steps[T]) -> Generator[JobStatus, None, T]:
        """Run steps, and pass on what they show."""
        reply: Any = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                decided: T = end.value
                return decided
            reply = None
            match step:
                case Pause():
                    if step.seconds > 0:
                        time.sleep(step.seconds)
                case Request():
                    reply = self._send(step)
                case Show():
                    yield step.status

    def close(self) -> None:
        """Close the connections; a second time does nothing."""
        self._connection.close()

    def _send(self, request: Request) -> Any:
        call = request.call
        if call.submits:
            with self._submitting:
                answer = self._connection.send(call, request.timeout)
        else:
            answer = self._connection.send(call, request.timeout)
        return calls.outcome(call, answer, self._key)


class Noukai:
    """A client of the Noukai job API. It is a context manager.

    Threads may share it. Processes may not: after a fork, make a new one, since two processes that write to
    the same connections get each other's answers.

    Args:
        api_key: The key; by default what ``NOUKAI_API_KEY`` holds.
        base_url: The address of the API; by default ``NOUKAI_BASE_URL``, else the service itself, or with
            ``NOUKAI_ENV=dev`` a server on this machine at port 8080.
        org: With ``project``, lets flows be named by their slug alone.
        project: See ``org``.
        timeout: Seconds that one request may take. A blocking client gives them to connecting, to sending and
            to the whole answer, one after the other.
        poll_interval: Seconds between two looks at a job, kept to about a tenth of one. By default the pause
            grows with the age of the job: a tenth of it, between 1 and 60 seconds.
        fault_patience: Seconds without one good answer after which passing faults are no longer waited out.
        not_found_grace: Seconds after a submission in which the server may not know the job yet.
        recovery_timeout: Seconds after an ambiguous end of a submission in which its job, if there is one,
            shows up in the server's list; 0 turns that look-up off.
        looks_per_second: The most looks a second at all jobs that this process waits for with this key.
        submissions_in_flight: The most requests to submit that this client has open at the same time. Others
            wait for their turn, without an end to it. A client opens 32 connections more at most.
        max_answer_bytes: The largest answer that is read.
        transport: An httpx transport to send requests through, for tests and unusual networks.

    Raises:
        InvalidInput: An argument is wrong.

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
        base_url: str | None = None,
        org: str | None = None,
        project: str | None = None,
        timeout: float = 30.0,
        poll_interval: float | None = None,
        fault_patience: float = 300.0,
        not_found_grace: float = 60.0,
        recovery_timeout: float = 60.0,
        looks_per_second: float = 50.0,
        submissions_in_flight: int = 16,
        max_answer_bytes: int = 64 * 1024 * 1024,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        api_key = hidden(api_key)
        self._settings = Settings.of(
            api_key=api_key,
            base_url=base_url,
            org=org,
            project=project,
            timeout=timeout,
            poll_interval=poll_interval,
            fault_patience=fault_patience,
            not_found_grace=not_found_grace,
            recovery_timeout=recovery_timeout,
            looks_per_second=looks_per_second,
            submissions_in_flight=submissions_in_flight,
            max_answer_bytes=max_answer_bytes,
        )
        self._runner = Runner(self._settings, transport)

    def flow(self, path: str) -> Flow:
        """Name a flow, as ``"org/project/slug"`` or, inside this client's org and project, as a slug.

        Raises:
            InvalidInput: It is not the address of a flow.
        """
        return Flow(self._runner, self._settings.flow_path(path), self._settings)

    def verify_key(self) -> KeyInfo:
        """Check the key. Noukai does not count this as a request.

        Returns:
            What the key gives access to.

        Raises:
            AuthenticationFailed: The key is wrong or revoked.
            APIError: The server refused otherwise, or was not reached.
        """
        return self._runner.run(send_patiently(calls.verify_key(), time.monotonic))

    def close(self) -> None:
        """Close the connections. Closing twice is fine."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return shown(self)


class Flow(FlowHandle[Runner]):
    """A flow that jobs can be submitted to. Made by ``Noukai.flow``."""

    def job(
        self,
        message: str | None = None,
        *,
        parameters: Mapping[str, Any] | None = None,
        block_overrides: Mapping[str, Mapping[str, Any]] | None = None,
        trace: bool = False,
        version: Version = "production",
        session_id: str | None = None,
        callback_url: str | None = None,
        callback_events: Sequence[str] | None = None,
        submission: Submission | None = None,
    ) -> Job:
        """Submit a job, once: whatever happens to the request, at most one job comes of it.

        Args:
            message: The input of the flow. It or ``parameters`` is needed.
            parameters: Named inputs that JSON can carry.
            block_overrides: Settings of single steps, by step id.
            trace: Whether the run is to be traced.
            version: ``"production"``, ``"draft"`` or the number of a published version.
            session_id: A UUID of your own that groups jobs. With one, a submission with an ambiguous end is
                not looked up, and ends as ``SubmissionUnknown``.
            callback_url: A public https address that Noukai calls when the job has ended.
            callback_events: Which of ``flow.completed`` and ``flow.failed`` it is called for.
            submission: The identity, when you keep it yourself; by default a fresh one.

        Returns:
            The job that was accepted.

        Raises:
            InvalidInput: An argument is wrong; nothing was sent.
            Refused: The server refused the job for good; there is none.
            APIError: The server took no job for ``fault_patience`` seconds, or lost each of several
                submissions; there is none.
            SubmissionUnknown: It could not be settled whether there is a job.
        """
        identity = submission or Submission.new()
        steps = self._submitting(
            message,
            parameters,
            block_overrides,
            trace,
            version,
            session_id,
            callback_url,
            callback_events,
            identity,
        )
        submitted = self._runner.run(steps)
        return self._job(submitted.job.id, submitted.at, submitted.job)

    def attach(self, job_id: str, *, submitted_at: datetime | None = None) -> Job:
        """Return the handle of a job that exists. No request is made.

        Args:
            job_id: The job.
            submitted_at: When it was submitted, with a time zone. Just after a submission the server may not
                know the job yet; with this time given, that is waited out.

        Raises:
            InvalidInput: The id or the time is wrong.
        """
        return self._job(job_id, submitted_at, None)

    def find(self, submission: Submission) -> Job | None:
        """Look for the job of a submission. Nothing is submitted.

        Args:
            submission: The identity that the submission was made with, and with no session id of your own.

        Returns:
            The job; or ``None`` when the server knows of none, which just after a submission proves nothing.

        Raises:
            Refused: The server refused for good.
            Unavailable: The server was not reached.
        """
        found = self._runner.run(self._finding(submission))
        return None if found is None else self._job(found.id, submission.sent_at, None)

    def _job(self, job_id: str, submitted_at: datetime | None, accepted: JobAccepted | None) -> Job:
        return Job(
            self._runner, job_id, self._path, self._settings, submitted_at=submitted_at, accepted=accepted
        )


class Job(JobHandle[Runner]):
    """A job that exists. Made by ``Flow.job`` and ``Flow.attach``."""

    def status(self) -> JobStatus:
        """Look at the job once. A fault is tried again for a few seconds.

        A job that was submitted a moment ago, and that the server does not know yet, is shown as pending.

        Raises:
            JobNotFound: The server does not know the job.
            Refused: The server refused for good.
            Unavailable: The server was not reached.
        """
        return self._runner.run(self._looking())

    def wait(self, *, timeout_ms: float | None = None, poll_interval: float | None = None) -> ExecuteResult:
        """Wait for the end of the job.

        Args:
            timeout_ms: Milliseconds to wait at most; by default there is no end to it.
            poll_interval: Seconds between two looks; by default the pause grows with the age of the job.

        Returns:
            The result of the completed job.

        Raises:
            JobFailed: The job failed.
            JobCancelled: The job was cancelled on the Noukai side.
            JobWaitTimeout: The deadline passed, and the job was left alone. It is a ``TimeoutError`` too.
            JobNotFound: The server does not know the job.
            Refused: The server refused for good.
            Unavailable: There was no good answer for ``fault_patience`` seconds.
        """
        return self._runner.run(self._watching(timeout_ms, poll_interval)).outcome()

    def watch(
        self, *, timeout_ms: float | None = None, poll_interval: float | None = None
    ) -> Iterator[JobStatus]:
        """Wait for the end of the job, and yield what is new: its state or its progress.

        The arguments and errors are those of ``wait``, but for the end of the job, which is yielded last.
        """
        return self._runner.show(self._watching(timeout_ms, poll_interval))

    def cancel(self) -> None:
        """Cancel the job. This has no effect on one that has ended.

        No source documents how Noukai cancels a job; the route that is used here is an assumption.

        Raises:
            CancelUnsupported: This server has no way to cancel a job, which goes on.
            JobNotFound: The server does not know the job.
            Unavailable: The server was not reached within a few seconds. A request that took longer, such as
                one that ran into its timeout, is not repeated.
        """
        self._runner.run(self._cancelling())

    def trace(self) -> RunTrace:
        """Read how the run went, step by step, with tokens and cost as far as the server tells.

        Raises:
            APIError: It cannot be read: some deployments refuse it to API keys.
        """
        return self._runner.run(self._tracing())
