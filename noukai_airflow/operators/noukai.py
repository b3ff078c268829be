"""The operator that runs a Noukai job as a task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

from airflow.providers.common.compat.sdk import AirflowTaskTimeout, conf
from airflow.sdk import BaseOperator

from noukai_airflow._retries import ran_before, retry_left
from noukai_airflow._trigger_event import JobEvent
from noukai_airflow._xcoms import JOB_ID, task_instance_of
from noukai_airflow.exceptions import (
    NoukaiException,
    NoukaiJobTimeoutException,
    airflow_errors,
    permanent_if_invalid,
    without_frames,
)
from noukai_airflow.links.noukai import NoukaiJobLink

if TYPE_CHECKING:
    from airflow.sdk import Context, ObjectStoragePath
    from pydantic import BaseModel

    from noukai_airflow._connection import ConnectionSettings
    from noukai_airflow._job_store import JobStore
    from noukai_airflow._lineage import Lineage
    from noukai_airflow._submit import TaskJob
    from noukai_airflow._task_output import TaskOutput
    from noukai_airflow._wait import JobWait, OnCancelled, OnFinalFailure
    from noukai_airflow.hooks.noukai import NoukaiHook
    from noukai_core import Job, JobRequest
    from noukai_core.checks import Duration
    from noukai_core.following import Follow


# What a task stores when it defers.
_KEPT = ("job_id", "flow", "submitted_at", "deadline", "noukai_conn_id", "session_id")


class _RecordedJob(NamedTuple):
    """The job of an earlier part of a task, as that part knew it."""

    job_id: str
    flow: str
    noukai_conn_id: str


class NoukaiRunJobOperator(BaseOperator):
    """Runs a Noukai job, and returns the flow's output.

    The job is submitted once: a retry after a crash attaches to the existing job. The job is cancelled when a
    user ends the task, but never by a shutdown. In addition to the return value, the XComs `job_id`,
    `job_url` and `job_status` are pushed.

    Args:
        flow: The flow as `org/project/slug`, or only its slug if the connection has an organisation and a
            project. Templated, like the next five arguments and the connection.
        message: The flow's input. Required unless `parameters` is set.
        parameters: Named inputs, as JSON values.
        block_overrides: Settings for individual steps, by step id.
        version: `"production"`, `"draft"` or the number of a published version.
        session_id: Your own UUID, which groups jobs. With one, a submission with an unknown outcome cannot be
            looked up.
        callback_url: A public https address that Noukai calls when the job has ended. Templated.
        callback_events: The events to call it for: `flow.completed`, `flow.failed` or both. Templated.
        trace: Whether the run is traced. The XCom `job_status` then includes its tokens and its cost.
        noukai_conn_id: The Airflow connection.
        deferrable: Whether to wait in the triggerer instead of on a worker. Defaults to the setting
            `[operators] default_deferrable`.
        output_path: The URI or `ObjectStoragePath` of a file for the output, for example on S3. The task then
            returns `{"uri": …, "bytes": …, "job_id": …}`. A text is written as it is unless the name ends in
            `.json`, and everything else as JSON. Templated, like the next argument.
        storage_conn_id: The Airflow connection of the storage.
        output_type: A pydantic model. The task returns the output with its defaults, as JSON values. If the
            output is no instance of it, the task fails, and a retry submits a new job.
        wait_for_completion: If off, the task ends after the submission and returns the job's id, for a
            sensor.
        timeout: How long the job may take from its submission, in seconds or as a timedelta. `None` means no
            limit.
        poll_interval: A fixed pause between polls, in seconds or as a timedelta, with a precision of about a
            tenth of a second. By default the pause grows with the age of the job: a tenth of it, between 1
            and 60 seconds.
        inline_wait: How long a deferrable task waits on the worker before it defers, in seconds or as a
            timedelta. `"auto"` waits a little longer than the job of the task's previous successful run took
            (before Airflow 3.4 always 15 seconds), and not at all if that took more than 13 seconds; without
            such a run, 3 seconds.
        on_cancelled: What happens to the task if the job is cancelled on the Noukai side: `"fail"` (without a
            retry) or `"skip"`.
        cancel_on_kill: Whether to cancel the job when a user ends or clears the task.
        cancel_on_timeout: Whether to cancel the job when it does not end in time.
        on_final_failure: What happens to a job that may be running when the task fails and no retry attaches
            to it: `"keep"` (with a warning) or `"cancel"`.
        follow: What of the job is logged while it runs: `"state"`, with its progress; `"steps"`, the steps as
            well, live; or `None`, only the submission and the end.
        durable: Whether a retry attaches to the job of an earlier try.
    """

    template_fields: Sequence[str] = (  # pyright: ignore[reportIncompatibleVariableOverride]
        "flow",
        "message",
        "parameters",
        "block_overrides",
        "version",
        "session_id",
        "callback_url",
        "callback_events",
        "noukai_conn_id",
        "output_path",
        "storage_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"parameters": "json", "block_overrides": "json"}
    operator_extra_links = (NoukaiJobLink(),)
    ui_color = "#efe7fb"

    @permanent_if_invalid
    def __init__(
        self,
        *,
        flow: str,
        message: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        block_overrides: Mapping[str, Mapping[str, Any]] | None = None,
        version: str | int = "production",
        session_id: str | None = None,
        callback_url: str | None = None,
        callback_events: Sequence[str] | None = None,
        trace: bool = False,
        noukai_conn_id: str = "noukai_default",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        output_path: str | ObjectStoragePath | None = None,
        storage_conn_id: str | None = None,
        output_type: type[BaseModel] | None = None,
        wait_for_completion: bool = True,
        timeout: Duration | None = timedelta(hours=24),
        poll_interval: Duration | None = None,
        inline_wait: Duration | Literal["auto"] = "auto",
        on_cancelled: OnCancelled = "fail",
        cancel_on_kill: bool = True,
        cancel_on_timeout: bool = True,
        on_final_failure: OnFinalFailure = "keep",
        follow: Follow = "state",
        durable: bool = True,
        **kwargs: Any,
    ) -> None:
        from noukai_core import InvalidInputError
        from noukai_core.checks import check_choice, check_duration, check_flag
        from noukai_core.following import FOLLOW
        from noukai_core.output_types import check_output_type

        super().__init__(**kwargs)  # pyright: ignore[reportUnknownMemberType]
        self.flow = flow
        self.message = message
        self.parameters = parameters
        self.block_overrides = block_overrides
        self.version = version
        self.session_id = session_id
        self.callback_url = callback_url
        self.callback_events = callback_events
        self.trace = check_flag(trace, "trace")
        self.noukai_conn_id = noukai_conn_id
        self.deferrable = check_flag(deferrable, "deferrable")
        self.output_path = output_path
        self.storage_conn_id = storage_conn_id
        self.output_type = check_output_type(output_type, defined=False)
        self.wait_for_completion = check_flag(wait_for_completion, "wait_for_completion")
        if not wait_for_completion and (output_path is not None or output_type is not None):
            raise InvalidInputError(
                "output_path and output_type need wait_for_completion: without, there is no output"
            )
        self.timeout = None if timeout is None else check_duration(timeout, "timeout")
        self.poll_interval = None if poll_interval is None else check_duration(poll_interval, "poll_interval")
        self.inline_wait = (
            None if inline_wait == "auto" else check_duration(inline_wait, "inline_wait", zero=True)
        )
        self.on_cancelled: OnCancelled = check_choice(on_cancelled, ("fail", "skip"), "on_cancelled")
        self.cancel_on_kill = check_flag(cancel_on_kill, "cancel_on_kill")
        self.cancel_on_timeout = check_flag(cancel_on_timeout, "cancel_on_timeout")
        self.on_final_failure: OnFinalFailure = check_choice(
            on_final_failure, ("keep", "cancel"), "on_final_failure"
        )
        self.follow: Follow = check_choice(follow, FOLLOW, "follow")
        self.durable = check_flag(durable, "durable")
        self._job: Job | None = None
        self._context: Context | None = None
        self._wait: JobWait | None = None
        self._kill_requested = False
        self._task_job: TaskJob | None = None
        self._kept: dict[str, Any] = {}
        self._requested: JobRequest | None = None

    @without_frames
    def execute(self, context: Context) -> Any:
        """Submit the job, or attach to that of an earlier try, and wait for it."""
        return self._guarded(context, lambda: self._run(context))

    @without_frames
    def execute_complete(
        self,
        context: Context,
        event: object = None,
        job_id: str | None = None,
        flow: str | None = None,
        submitted_at: str | None = None,
        deadline: float | None = None,
    ) -> Any:
        """Continue after the trigger's event.

        The event is verified: the task polls the job before it ends.
        """
        kept = self._kept
        job_id, flow = job_id or kept.get("job_id"), flow or kept.get("flow")
        submitted_at = submitted_at or kept.get("submitted_at")
        deadline = kept.get("deadline") if deadline is None else deadline
        job_event = JobEvent.read(event)
        if job_id is None and (recorded := self._recorded_job(context)) is not None:
            job_id, flow = recorded.job_id, flow or recorded.flow
        known_id = job_id or (job_event.job_id if job_event else None)
        if known_id is None:
            raise NoukaiException(
                f"The task was resumed with an event that names no Noukai job: {event!r:.200}"
            )
        job_event = JobEvent.for_job(known_id, job_event)
        sent_at = None if submitted_at is None else datetime.fromisoformat(submitted_at)
        return self._guarded(
            context,
            lambda: self._resumed_wait(
                context, flow or self.flow, known_id, sent_at, job_event.state if job_event else None
            ).resolve(job_event, deadline),
        )

    @without_frames
    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume the task.

        If Airflow's own limit ended the deferral, no code of the trigger has run, so the job is cancelled
        here.

        What the task has stored for itself is not passed on: a subclass may override `execute_complete` with
        the arguments that it has everywhere, the context and the event. Its DAG may name another connection
        or another flow by now, which do not have the job.
        """
        from noukai_airflow._compat import TaskDeferralError, TaskDeferralTimeout

        others = dict(next_kwargs or {})
        self._kept = {name: others.pop(name) for name in _KEPT if name in others}
        self.noukai_conn_id = self._kept.get("noukai_conn_id", self.noukai_conn_id)
        try:
            return super().resume_execution(next_method, others, context)
        except TaskDeferralTimeout:
            job = self._recorded_job(context)
            if job is None:
                raise
            self.noukai_conn_id, deadline = job.noukai_conn_id, time.time()
            return self._guarded(
                context,
                lambda: self._resumed_wait(context, job.flow, job.job_id, None).resolve(None, deadline),
            )
        except TaskDeferralError:
            lost = self._recorded_job(context)
            if lost is not None:
                self.noukai_conn_id = lost.noukai_conn_id
                wait = self._resumed_wait(context, lost.flow, lost.job_id, None)
                phrase = wait.leave(retry_left=retry_left(self, context))
                self.log.warning(
                    "Noukai job %s of %s: trigger failed: lost; %s", lost.job_id, lost.flow, phrase
                )
            raise

    def on_kill(self) -> None:
        """Cancel the job if a user ends the task.

        If only the worker is stopping, leave the job running, for a retry to attach to.
        """
        self._kill_requested = True
        job = self._known_job()
        if job is None or self._context is None:
            if self._task_job is not None:
                self._task_job.log_in_flight()
            return
        from noukai_airflow._worker_kill import KillOptions, end_job

        raise end_job(
            job,
            self._settings,
            task_instance_of(self._context),
            self._store(self._context),
            KillOptions(
                cancel_on_kill=self.cancel_on_kill,
                cancel_left_behind=self.on_final_failure == "cancel",
                durable=self._retry_attaches(self._context),
                retry_left=retry_left(self, self._context),
            ),
        )

    def _known_job(self) -> Job | None:
        """Return the task's job, even while a poll still decides whether the task attaches to it."""
        if self._job is None and self._task_job is not None:
            return self._task_job.polled
        return self._job

    def _retry_attaches(self, context: Context) -> bool:
        """Return whether a retry finds the job: in the store, or by the session of its submission."""
        from noukai_airflow._submit import can_ask_server

        asks = can_ask_server(self._settings, self._users_session())
        return self.durable and (self._store(context).is_durable or asks)

    def _users_session(self) -> object:
        """Return the session in which the job is, if it is the user's own.

        The function of a decorated task may return one, and is not called again after a deferral.
        """
        if self._requested is not None:
            return self._requested.session_id
        return self._kept.get("session_id", self.session_id)

    @property
    def job_page(self) -> str | None:
        """The URL of the job's page, empty without a template for it; `None` while there is no job."""
        if self._job is None:
            return None
        return self._settings.run_url(self._job.flow, self._job.id) or ""

    def get_openlineage_facets_on_start(self) -> Lineage:
        """Report the flow to OpenLineage; there is no job yet."""
        from noukai_airflow._lineage import job_lineage

        return job_lineage(self.flow, None)

    def get_openlineage_facets_on_complete(self, task_instance: object) -> Lineage:
        """Report the job and how it ended to OpenLineage, even when the task has failed."""
        from noukai_airflow._lineage import job_lineage

        if self._job is None:
            return self.get_openlineage_facets_on_start()
        outcome = None if self._wait is None else self._wait.outcome
        return job_lineage(self._job.flow, self._job.id, outcome)

    def _run(self, context: Context) -> Any:
        from noukai_airflow._job_store import TaskKey
        from noukai_airflow._submit import TaskJob

        started = time.time()
        output = self._output()

        def request() -> JobRequest:
            output.check()
            self._requested = self._request(context)
            return self._requested

        self._task_job = TaskJob(
            self._settings,
            self.flow,
            request,
            self._store(context),
            TaskKey.of(context),
            task_instance_of(context),
            retries=self.retries or 0,
            durable=self.durable,
            cancel_on_kill=self.cancel_on_kill,
            rescheduled=bool(cast("dict[str, Any]", context).get("task_reschedule_count")),
            accepts=output.accepts,
            is_killed=lambda: self._kill_requested,
        )
        job = self._task_job.obtain()
        wait = self._wait_for(context, job)
        self._obey_early_signal()
        wait.publish_job()
        if self.wait_for_completion:
            return wait.wait(wait.deadline(started))
        self._store(context).change(delivered=True)
        return job.id

    def _request(self, context: Context) -> JobRequest:
        from noukai_core import JobRequest

        return JobRequest(
            flow=self.flow,
            message=self.message,
            parameters=self.parameters,
            block_overrides=self.block_overrides,
            version=self.version,
            trace=self.trace,
            session_id=self.session_id,
            callback_url=self.callback_url,
            callback_events=self.callback_events,
        )

    def _resumed_wait(
        self,
        context: Context,
        flow: str,
        job_id: str,
        submitted_at: datetime | None,
        logged_state: str | None = None,
    ) -> JobWait:
        from noukai_airflow._client_cache import shared_client
        from noukai_core import JobStatus

        job = (
            shared_client(self._settings)
            .flow(flow)
            .attach(
                job_id,
                submitted_at=submitted_at,
                last_status=JobStatus(id=job_id, state=logged_state) if logged_state else None,
            )
        )
        wait = self._wait_for(context, job)
        self._obey_early_signal()
        return wait

    def _obey_early_signal(self) -> None:
        """Do what `on_kill` does if it was called before the job was known."""
        if self._kill_requested:
            self.on_kill()

    def _wait_for(self, context: Context, job: Job) -> JobWait:
        from noukai_airflow._wait import JobWait, WaitOptions

        session = self._users_session()
        options = WaitOptions(
            noukai_conn_id=self.noukai_conn_id,
            timeout=self.timeout,
            execution_timeout=self.execution_timeout,
            poll_interval=self.poll_interval,
            inline_wait=self.inline_wait,
            deferrable=self.deferrable,
            durable=self._retry_attaches(context),
            retry_left=retry_left(self, context),
            trace=self.trace,
            on_cancelled=self.on_cancelled,
            on_final_failure=self.on_final_failure,
            cancel_on_kill=self.cancel_on_kill,
            cancel_on_timeout=self.cancel_on_timeout,
            push_xcoms=self.do_xcom_push,
            follow=self.follow,
            session_id=None if session is None else str(session),
        )
        self._job = job
        self._wait = JobWait(
            options, self.defer, context, self._settings, self._store(context), job, self._output()
        )
        return self._wait

    def _output(self) -> TaskOutput:
        from noukai_airflow._task_output import TaskOutput

        return TaskOutput(
            self.output_type, self.output_path, self.storage_conn_id, multiple_outputs=self.multiple_outputs
        )

    def _guarded(self, context: Context, step: Callable[[], Any]) -> Any:
        """Run a step, and raise its errors, kills and timeouts in the form that Airflow expects."""
        from noukai_airflow._compat import AirflowTaskTerminated
        from noukai_airflow._submit import note_returned
        from noukai_airflow._worker_kill import TaskKilled
        from noukai_core import JobNotFoundError, ResponseTooLargeError

        self._context = context
        try:
            with airflow_errors():
                result = step()
        except TaskKilled as killed:
            if killed.by_user:
                raise AirflowTaskTerminated("A user ended the task") from None
            raise NoukaiException(
                f"Noukai job {killed.job.id} of {killed.job.flow}: {killed.phrase}", job_id=killed.job.id
            ) from None
        except Exception as error:
            # If a response is too large, it is the result of a job that has ended.
            if not isinstance(error.__context__, ResponseTooLargeError | JobNotFoundError):
                self._leave_job(context, error)
            raise
        except AirflowTaskTimeout:
            self._execution_timed_out(context)
            raise
        except KeyboardInterrupt:
            # Airflow's task processes leave SIGINT to the system: a person has stopped `airflow dags test`.
            self._interrupted(context)
            raise
        else:
            if self._job is not None:
                note_returned(self._job.id, task_instance_of(context).try_number)
            return result
        finally:
            self._context = None

    def _leave_job(self, context: Context, error: Exception) -> None:
        """Say what becomes of a job that may be running, or of one that was not even looked for."""
        from noukai_airflow._submit import log_unsought

        job = self._known_job()
        if job is not None:
            wait = self._wait or self._wait_for(context, job)
            if not wait.settled:
                wait.leave(retry_left=retry_left(self, context, error))
        elif self.durable and retry_left(self, context, error):
            return
        elif self._task_job is not None and self._task_job.record_read:
            self._task_job.log_in_flight()
        else:
            log_unsought(self._store(context), self.flow, ran_before(context, resumed=bool(self._kept)))

    def _interrupted(self, context: Context) -> None:
        job = self._known_job()
        if job is not None:
            (self._wait or self._wait_for(context, job)).interrupt()
        elif self._task_job is not None:
            self._task_job.log_in_flight()

    def _execution_timed_out(self, context: Context) -> None:
        job = self._known_job()
        if job is None:
            return
        wait = self._wait or self._wait_for(context, job)
        self._job = None  # Airflow calls on_kill next, which then must do nothing about the job
        if self._task_job is not None:
            self._task_job.polled = None
        try:
            wait.time_out(deliver=False)
        except NoukaiJobTimeoutException as error:
            self.log.warning("%s", error)

    @property
    def _settings(self) -> ConnectionSettings:
        return self._hook.settings

    @cached_property
    def _hook(self) -> NoukaiHook:
        from noukai_airflow.hooks.noukai import NoukaiHook

        return NoukaiHook(self.noukai_conn_id)

    def _store(self, context: Context) -> JobStore:
        from noukai_airflow._job_store import JobStore

        return JobStore.of(
            context,
            durable=self.durable,
            push_xcoms=self.do_xcom_push,
            cancel_with=self.noukai_conn_id if self.cancel_on_kill else None,
        )

    def _recorded_job(self, context: Context) -> _RecordedJob | None:
        record = self._store(context).read()
        if record is not None and record.job_id is not None:
            return _RecordedJob(record.job_id, record.flow, record.cancel_with or self.noukai_conn_id)
        task_instance = task_instance_of(context)
        pulled = task_instance.xcom_pull(
            task_ids=task_instance.task_id, key=JOB_ID, map_indexes=task_instance.map_index
        )
        return _RecordedJob(pulled, self.flow, self.noukai_conn_id) if isinstance(pulled, str) else None
