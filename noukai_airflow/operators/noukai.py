"""The operator that runs a Noukai job as a task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowTaskTimeout, conf
from airflow.sdk import BaseOperator

from noukai_airflow import _arguments
from noukai_airflow._arguments import Duration, OnCancelled
from noukai_airflow._kill_policy import left_running
from noukai_airflow._trigger_event import JobEvent
from noukai_airflow._xcoms import JOB_ID, task_instance_of
from noukai_airflow.exceptions import NoukaiException, NoukaiJobTimeoutException, airflow_errors
from noukai_airflow.links.noukai import NoukaiJobLink

if TYPE_CHECKING:
    from airflow.sdk import Context

    from noukai_airflow._connection import ConnectionSettings
    from noukai_airflow._job_store import JobStore
    from noukai_airflow._lineage import Lineage
    from noukai_airflow._submit import JobRequest
    from noukai_airflow._wait import JobWait
    from noukai_airflow.hooks.noukai import NoukaiHook
    from noukai_core import Job


class NoukaiRunJobOperator(BaseOperator):
    """Runs a Noukai job, and returns the flow's output.

    The job is submitted once: a retry after a crash attaches to the job that is there. It is cancelled when a
    user ends the task, and never by a shutdown. Next to the return value, the XComs `job_id`, `job_url` and
    `job_status` are pushed.

    Args:
        flow: The flow, as `org/project/slug`, or as a slug alone when the connection has org and project.
            Templated, like the five arguments that follow and the connection.
        message: The flow's input. It or `parameters` is needed.
        parameters: Named inputs that JSON can carry.
        block_overrides: Settings of single steps, by step id.
        version: `"production"`, `"draft"` or the number of a published version.
        session_id: A UUID of your own that groups jobs. With one, a submission with an ambiguous end cannot
            be looked up.
        trace: Whether the run is traced; its tokens and its cost are then part of the XCom `job_status`.
        noukai_conn_id: The Airflow connection.
        deferrable: Whether to wait in the triggerer instead of on a worker. By default what `[operators]
            default_deferrable` says.
        wait_for_completion: If off, the task ends with the submission and returns the job's id, for a sensor.
        timeout: How long the job may take, in seconds or as a timedelta, from its submission; `None` for no
            limit.
        poll_interval: A fixed pause between looks, in seconds or as a timedelta, kept to about a tenth of a
            second. By default it grows with the age of the job: a tenth of it, between 1 and 60 seconds.
        inline_wait: How long a deferrable task looks at its job on the worker before it defers, in seconds.
        on_cancelled: What becomes of the task when somebody cancels the job on the Noukai side: `"fail"`
            (without a retry) or `"skip"`.
        cancel_on_kill: Whether the job is cancelled when a user ends or clears the task.
        cancel_on_timeout: Whether the job is cancelled when it does not end in time.
        durable: Whether a retry attaches to the job of an earlier try.
    """

    template_fields: Sequence[str] = (  # pyright: ignore[reportIncompatibleVariableOverride]
        "flow",
        "message",
        "parameters",
        "block_overrides",
        "version",
        "session_id",
        "noukai_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"parameters": "json", "block_overrides": "json"}
    operator_extra_links = (NoukaiJobLink(),)
    ui_color = "#efe7fb"

    def __init__(
        self,
        *,
        flow: str,
        message: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        block_overrides: Mapping[str, Mapping[str, Any]] | None = None,
        version: str | int = "production",
        session_id: str | None = None,
        trace: bool = False,
        noukai_conn_id: str = "noukai_default",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        wait_for_completion: bool = True,
        timeout: Duration | None = timedelta(hours=24),
        poll_interval: Duration | None = None,
        inline_wait: Duration = 3.0,
        on_cancelled: OnCancelled = "fail",
        cancel_on_kill: bool = True,
        cancel_on_timeout: bool = True,
        durable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)  # pyright: ignore[reportUnknownMemberType]
        self.flow = flow
        self.message = message
        self.parameters = parameters
        self.block_overrides = block_overrides
        self.version = version
        self.session_id = session_id
        self.trace = trace
        self.noukai_conn_id = noukai_conn_id
        self.deferrable = deferrable
        self.wait_for_completion = wait_for_completion
        self.timeout = None if timeout is None else _arguments.seconds(timeout, "timeout")
        self.poll_interval = (
            None if poll_interval is None else _arguments.seconds(poll_interval, "poll_interval")
        )
        self.inline_wait = _arguments.seconds(inline_wait, "inline_wait", zero=True)
        self.on_cancelled = _arguments.on_cancelled(on_cancelled)
        self.cancel_on_kill = cancel_on_kill
        self.cancel_on_timeout = cancel_on_timeout
        self.durable = durable
        self._job: Job | None = None
        self._context: Context | None = None
        self._wait: JobWait | None = None
        self._ending = False

    def execute(self, context: Context) -> Any:
        """Submit the job, or find the one of an earlier try, and wait for it."""
        return self._guarded(context, lambda: self._run(context))

    def execute_complete(
        self,
        context: Context,
        event: object = None,
        job_id: str | None = None,
        flow: str | None = None,
        submitted_at: str | None = None,
        deadline: float | None = None,
    ) -> Any:
        """Go on after the trigger's event.

        What it says is checked with the server before anything comes of it.
        """
        read = JobEvent.read(event)
        known = job_id or self._remembered_job_id(context) or (read.job_id if read else None)
        if known is None:
            raise NoukaiException(
                f"The task was resumed with an event that names no Noukai job: {event!r:.200}"
            )
        read = JobEvent.about(known, read)
        sent = None if submitted_at is None else datetime.fromisoformat(submitted_at)
        return self._guarded(
            context, lambda: self._resumed(context, flow or self.flow, known, sent).resolve(read, deadline)
        )

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume the task.

        When Airflow's own limit has ended the deferral, no code of the trigger's has run, and the job is
        cancelled here.
        """
        from noukai_airflow._compat import TaskDeferralError, TaskDeferralTimeout

        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            known = self._remembered_job_id(context)
            if known is None:
                raise
            over = time.time()
            return self._guarded(
                context, lambda: self._resumed(context, self.flow, known, None).resolve(None, over)
            )
        except TaskDeferralError:
            job_id = self._remembered_job_id(context)
            self.log.warning(
                "The trigger of Noukai job %s is lost. %s", job_id, left_running(durable=self.durable)
            )
            raise

    def on_kill(self) -> None:
        """Cancel the job if a user ends the task.

        If only the worker is ending, keep it for a retry to attach to.
        """
        self._ending = True
        if self._job is None or self._context is None:
            return
        from noukai_airflow._worker_kill import end_job

        raise end_job(
            self._job,
            self._settings,
            task_instance_of(self._context),
            cancel_on_kill=self.cancel_on_kill,
            durable=self.durable,
        )

    @property
    def job_page(self) -> str | None:
        """The URL of the job's page, empty where the connection tells none; `None` while there is no job."""
        if self._job is None:
            return None
        return self._settings.run_url(self._job.flow, self._job.id) or ""

    def get_openlineage_facets_on_start(self) -> Lineage:
        """Tell OpenLineage the flow; there is no job yet."""
        from noukai_airflow._lineage import job_lineage

        return job_lineage(self.flow, None)

    def get_openlineage_facets_on_complete(self, task_instance: object) -> Lineage:
        """Tell OpenLineage the job, also when the task has failed."""
        from noukai_airflow._lineage import job_lineage

        if self._job is None:
            return self.get_openlineage_facets_on_start()
        return job_lineage(self._job.flow, self._job.id)

    def _run(self, context: Context) -> Any:
        from noukai_airflow._submit import TaskJob

        started = time.time()
        task_job = TaskJob(
            self._settings,
            self._inputs(context),
            self._store(context),
            task_instance_of(context),
            retries=self.retries or 0,
            durable=self.durable,
            cancel_on_kill=self.cancel_on_kill,
        )
        job = task_job.obtain()
        wait = self._waiting_for(context, job)
        if self._ending:  # a signal came in the middle of the submission
            self.on_kill()
        wait.announce()
        return wait.wait(wait.deadline(started)) if self.wait_for_completion else job.id

    def _inputs(self, context: Context) -> JobRequest:
        from noukai_airflow._submit import JobRequest

        return JobRequest(
            flow=self.flow,
            message=self.message,
            parameters=self.parameters,
            block_overrides=self.block_overrides,
            version=self.version,
            trace=self.trace,
            session_id=self.session_id,
        )

    def _resumed(self, context: Context, flow: str, job_id: str, submitted_at: datetime | None) -> JobWait:
        from noukai_airflow._client_cache import shared_client

        job = shared_client(self._settings).flow(flow).attach(job_id, submitted_at=submitted_at)
        return self._waiting_for(context, job)

    def _waiting_for(self, context: Context, job: Job) -> JobWait:
        from noukai_airflow._wait import JobWait

        self._job = job
        self._wait = JobWait(self, context, self._settings, self._store(context), job)
        return self._wait

    def _guarded(self, context: Context, step: Callable[[], Any]) -> Any:
        """Run a step in Airflow's terms: its errors, and its two ways to end a task in the middle."""
        from noukai_airflow._compat import AirflowTaskTerminated
        from noukai_airflow._worker_kill import TaskKilled

        self._context = context
        try:
            with airflow_errors():
                return step()
        except TaskKilled as killed:
            if killed.by_user:
                raise AirflowTaskTerminated("A user ended the task") from None
            raise NoukaiException(
                f"The worker is ending before Noukai job {killed.job_id}. "
                f"{left_running(durable=self.durable)}",
                job_id=killed.job_id,
            ) from None
        except AirflowTaskTimeout:
            self._job = None  # Airflow calls on_kill next, which then has nothing left to do
            self._execution_timed_out()
            raise
        finally:
            self._context = None

    def _execution_timed_out(self) -> None:
        if self._wait is None:
            return
        try:
            self._wait.time_out("The job did not end within the task's execution_timeout.")
        except NoukaiJobTimeoutException as error:
            self.log.warning("Noukai job %s: %s", error.job_id, error)

    @property
    def _settings(self) -> ConnectionSettings:
        return self._hook.settings

    @cached_property
    def _hook(self) -> NoukaiHook:
        from noukai_airflow.hooks.noukai import NoukaiHook

        return NoukaiHook(self.noukai_conn_id)

    def _store(self, context: Context) -> JobStore:
        from noukai_airflow._job_store import JobStore

        return JobStore.of(context, durable=self.durable)

    def _remembered_job_id(self, context: Context) -> str | None:
        record = self._store(context).read()
        if record is not None and record.job_id is not None:
            return record.job_id
        task_instance = task_instance_of(context)
        pulled = task_instance.xcom_pull(
            task_ids=task_instance.task_id, key=JOB_ID, map_indexes=task_instance.map_index
        )
        return pulled if isinstance(pulled, str) else None
