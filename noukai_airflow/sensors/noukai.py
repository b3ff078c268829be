"""The sensor that waits for a Noukai job which something else submitted."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException, conf
from airflow.sdk import BaseSensorOperator, PokeReturnValue

from noukai_airflow._compat import DEFERRAL_FAILED
from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_airflow._xcoms import JOB_STATUS, task_instance_of
from noukai_airflow.exceptions import (
    NoukaiException,
    NoukaiJobCancelledException,
    NoukaiJobCompletedException,
    NoukaiJobFailedException,
    NoukaiJobTimeoutException,
    NoukaiSensorJobFailedException,
    airflow_errors,
    permanent_if_invalid,
    without_frames,
)
from noukai_airflow.links.noukai import NoukaiJobLink, push_page

if TYPE_CHECKING:
    from airflow.sdk import Context

    from noukai_airflow._lineage import Lineage
    from noukai_airflow._outcome import JobOutcome
    from noukai_airflow.hooks.noukai import NoukaiHook
    from noukai_core import Job, JobStatus
    from noukai_core.checks import Duration
    from noukai_core.following import Follow

_STATES = frozenset({"completed", "failed", "cancelled"})
_DEFAULT_POKE_SECONDS = 60.0

# Airflow lets a sensor poke without a pause. The triggerer, in which many of them wait, has one.
_SHORTEST_PAUSE = 0.1


def _are_final(states: object) -> bool:
    """Tell whether these are some of the final states. An XComArg is no collection."""
    if isinstance(states, str) or not isinstance(states, Collection):
        return False
    named = tuple(cast("Collection[object]", states))
    return bool(named) and all(isinstance(state, str) and state in _STATES for state in named)


class NoukaiJobSensor(BaseSensorOperator):
    """Waits until a job has completed, and returns its output.

    It never cancels the job, since it did not submit it.

    After a transient error the sensor keeps polling until its `timeout`. A job that failed or was cancelled
    fails the sensor at once and without a retry, since its state is final; so does one that completed, if
    `allowed_states` does not name it.

    Args:
        job_id: The job. Templated, like the flow and the connection.
        flow: The job's flow as `org/project/slug`, or only its slug if the connection has an organisation and
            a project.
        noukai_conn_id: The Airflow connection.
        allowed_states: The final states that let the sensor succeed: some of `completed`, `failed` and
            `cancelled`.
        deferrable: Whether to wait in the triggerer, for no longer than `execution_timeout`. Defaults to the
            setting `[operators] default_deferrable`.
        poke_interval: The pause between polls. Defaults to 60 seconds; in the triggerer, to a tenth of the
            time waited, between 1 and 60 seconds.
        follow: What of the job is logged while it runs: `"state"`; `"steps"`, its steps as well, live, which
            needs a sensor that waits without being rescheduled; or `None`, only its end.
        **kwargs: Arguments of every sensor, such as `timeout`, `soft_fail` and `mode`.
    """

    template_fields: Sequence[str] = (  # pyright: ignore[reportIncompatibleVariableOverride]
        "job_id",
        "flow",
        "noukai_conn_id",
    )
    operator_extra_links = (NoukaiJobLink(),)
    ui_color = "#efe7fb"

    @permanent_if_invalid
    def __init__(
        self,
        *,
        job_id: str,
        flow: str,
        noukai_conn_id: str = "noukai_default",
        allowed_states: Collection[str] = ("completed",),
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: Duration | None = None,
        follow: Follow = "state",
        **kwargs: Any,
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            poke_interval=_DEFAULT_POKE_SECONDS if poke_interval is None else poke_interval, **kwargs
        )
        from noukai_core import InvalidInputError
        from noukai_core.checks import check_choice, check_flag
        from noukai_core.following import FOLLOW, StepCount

        if not _are_final(allowed_states):
            raise InvalidInputError(
                f"allowed_states is {allowed_states!r:.100}, but must be some of {', '.join(sorted(_STATES))}"
            )
        self.follow: Follow = check_choice(follow, FOLLOW, "follow")
        if follow == "steps" and self.reschedule and not deferrable:
            raise InvalidInputError(
                "follow is 'steps', but a rescheduled sensor does not run between its polls"
            )
        self.job_id = job_id
        self.flow = flow
        self.noukai_conn_id = noukai_conn_id
        self.allowed_states = tuple(sorted(set(allowed_states)))
        self.deferrable = check_flag(deferrable, "deferrable")
        self._interval = None if poke_interval is None else max(self.poke_interval, _SHORTEST_PAUSE)
        self._started: datetime | None = None
        self._deadline = math.inf
        self._kept_deadline: float | None = None
        self._execution_deadline: float | None = None
        self._state: str | None = None
        self._page: str | None = None
        self._steps = StepCount()
        self._outcome: JobOutcome | None = None

    @without_frames
    def execute(self, context: Context) -> Any:
        """Wait on the worker, or poll once and wait in the triggerer."""
        started = time.time()
        self._started = self._first_start(context)
        self._deadline = self._started.timestamp() + self.timeout
        if not self.deferrable:
            with self._failing_softly(), self._following():
                return super().execute(context)
        self._limit_execution(started)
        done = self.poke(context)
        if done:
            return done.xcom_value
        return self._defer()

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll the job once."""
        with self._failing_softly():
            return self._poll(context) or PokeReturnValue(is_done=False)

    def _poll(self, context: Context) -> PokeReturnValue | None:
        """Poll the job. Return `None` after a transient error."""
        import noukai_core as core

        job = self._job()
        if self._page is None:
            self._page = self._hook.settings.run_url(job.flow, job.id) or ""
            if self._page and self.do_xcom_push:
                push_page(task_instance_of(context), self._page)
        try:
            status = job.status()
        except (core.TransientError, core.InvalidResponseError) as error:
            if not error.retryable:
                raise
            self.log.warning(
                "Noukai job %s of %s: poll failed (retrying for up to %.0f s): %s",
                *(self.job_id, self.flow, max(0.0, self._ends - time.time()), error),
            )
            return None
        if status.state != self._state:
            change = status.state if self._state is None else f"{self._state} → {status.state}"
            if self.follow is not None or status.finished:
                self.log.info("Noukai job %s of %s: %s", self.job_id, self.flow, change)
            self._state = status.state
        if not status.finished:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._result(context, status))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume the sensor, with the arguments of `execute_complete` that a subclass expects.

        Its DAG may name another connection by now, whose server does not have the job. If Airflow's own limit
        ended the deferral, since no triggerer ran, the job may have ended.
        """
        others = dict(next_kwargs or {})
        self._kept_deadline = others.pop("deadline", None)
        self._execution_deadline = others.pop("execution_deadline", None)
        self.noukai_conn_id = others.pop("noukai_conn_id", self.noukai_conn_id)
        if next_method == DEFERRAL_FAILED and (polled := self._last_poll(context)):
            return polled.xcom_value
        try:
            return super().resume_execution(next_method, others, context)
        except AirflowSensorTimeout as error:
            if next_method != DEFERRAL_FAILED:
                raise
            # Airflow keeps nothing that the sensor has stored. Its arguments tell which limit came first.
            started = time.time()
            self._deadline = started + self.timeout
            self._limit_execution(started)
            raise self._timed_out() from error

    def _last_poll(self, context: Context) -> PokeReturnValue | None:
        """Poll a job whose time is over. If that fails, the sensor fails for the reason that it had."""
        self._deadline = time.time()
        try:
            with self._failing_softly():
                return self._poll(context)
        except (
            AirflowSkipException,
            NoukaiJobFailedException,
            NoukaiJobCancelledException,
            NoukaiJobCompletedException,
        ):
            raise
        except Exception as error:
            self.log.warning("Noukai job %s of %s: not polled (%s)", self.job_id, self.flow, error)
            return None

    @without_frames
    def execute_complete(self, context: Context, event: object = None, deadline: float | None = None) -> Any:
        """Continue after the trigger's event.

        The event is verified: the sensor polls the job before it ends.
        """
        job_event = JobEvent.for_job(self.job_id, JobEvent.read(event))
        self._steps.logged = job_event.logged_steps if job_event else 0
        deadline = self._kept_deadline if deadline is None else deadline
        self._deadline = time.time() + self.timeout if deadline is None else deadline
        with self._failing_softly():
            polled = self._poll(context)
            if polled:
                return polled.xcom_value
            reason = job_event.reason if job_event else "unknown event"
            # The clock of the triggerer may be ahead of this one.
            if reason is Reason.TIMED_OUT or time.time() >= self._ends:
                raise self._timed_out()
            # This poll may have reached a replica that lags behind the one that the trigger polled last.
            if polled is None or reason in (Reason.TRANSIENT_ERROR, Reason.FINISHED):
                return self._defer()
            if reason is Reason.RESPONSE_TOO_LARGE:
                return self._wait_on_worker(context)
            raise NoukaiException(
                f"Noukai job {self.job_id} of {self.flow}: trigger failed: {reason}, but the job "
                "has not ended",
                job_id=self.job_id,
            )

    def _wait_on_worker(self, context: Context) -> Any:
        """Wait on the worker to the end: the responses are too large for a triggerer."""
        timeout, self.timeout = self.timeout, max(self._ends - time.time(), 0.0)
        try:
            with self._following():
                return super().execute(context)
        except AirflowSensorTimeout:
            self.timeout = timeout
            raise self._timed_out() from None

    def _limit_execution(self, started: float) -> None:
        from noukai_airflow._wait import execution_deadline

        self._execution_deadline = execution_deadline(started, self.execution_timeout)

    @property
    def _ends(self) -> float:
        """When the wait is over, by the `timeout` of the sensor or the `execution_timeout` of its try."""
        limit = self._execution_deadline
        return self._deadline if limit is None else min(self._deadline, limit)

    def _timed_out(self) -> AirflowSensorTimeout | NoukaiJobTimeoutException:
        """Return the exception for the limit that is over. Only after that of the try does a retry follow."""
        about = f"Noukai job {self.job_id} of {self.flow}: timed out"
        if self._ends < self._deadline:
            return NoukaiJobTimeoutException(f"{about} (execution_timeout)", job_id=self.job_id)
        return AirflowSensorTimeout(f"{about} after {self.timeout:g} s")

    @property
    def job_page(self) -> str | None:
        """The URL of the job's page, empty without a template for it; `None` before the first poll."""
        return self._page

    def get_openlineage_facets_on_start(self) -> Lineage:
        """Report the job to OpenLineage."""
        from noukai_airflow._lineage import job_lineage

        return job_lineage(self.flow, self.job_id)

    def get_openlineage_facets_on_complete(self, task_instance: object) -> Lineage:
        """Report the job and how it ended to OpenLineage, even when the sensor has failed."""
        from noukai_airflow._lineage import job_lineage

        return job_lineage(self.flow, self.job_id, self._outcome)

    def _result(self, context: Context, status: JobStatus) -> Any:
        from noukai_airflow._outcome import JobOutcome, about_job
        from noukai_airflow._task_output import returned

        job = self._job()
        url = self._hook.settings.run_url(job.flow, job.id)
        outcome = JobOutcome.read(job, status, url=url, traced=False)
        if self.do_xcom_push:
            task_instance_of(context).xcom_push(JOB_STATUS, outcome.summary())
        outcome.describe_assets(context)
        self._outcome = outcome
        if status.state in self.allowed_states:
            output = status.result.output if status.result else None
            return returned(job, output, multiple_outputs=self.multiple_outputs)
        error = outcome.exception()
        if error is None:
            phrase = f"{status.state}, but allowed_states is {self.allowed_states!r}"
            raise NoukaiJobCompletedException(about_job(phrase, job, url), job_id=job.id)
        if isinstance(error, NoukaiJobFailedException):
            raise NoukaiSensorJobFailedException(str(error), job_id=error.job_id, step=error.step)
        raise error

    def _following(self) -> AbstractContextManager[None]:
        if self.follow != "steps":
            return nullcontext()
        from noukai_airflow._steps import steps_beside

        return steps_beside(self._hook.settings, self._job(), self._steps)

    def _defer(self) -> None:
        from noukai_airflow.triggers.noukai import NoukaiJobTrigger, backstop

        ends = self._ends
        self.defer(
            trigger=NoukaiJobTrigger.for_job(
                self._job(),
                noukai_conn_id=self.noukai_conn_id,
                deadline=ends,
                poll_interval=self._interval,
                follow=self.follow,
                logged_steps=self._steps.logged,
            ),
            method_name="execute_complete",
            kwargs={
                "deadline": self._deadline,
                "execution_deadline": self._execution_deadline,
                "noukai_conn_id": self.noukai_conn_id,
            },
            timeout=backstop(ends),
        )

    @cached_property
    def _hook(self) -> NoukaiHook:
        from noukai_airflow.hooks.noukai import NoukaiHook

        return NoukaiHook(self.noukai_conn_id)

    def _job(self) -> Job:
        client = self._hook.get_conn()
        # Shortly after its submission, the server may not know the job yet. The time of the submission
        # is unknown here, so the grace period counts from the start of the sensor.
        return client.flow(self.flow).attach(self.job_id, submitted_at=self._started)

    def _first_start(self, context: Context) -> datetime:
        first = task_instance_of(context).get_first_reschedule_date(context) if self.reschedule else None
        return first or datetime.now(UTC)

    @contextmanager
    def _failing_softly(self) -> Generator[None, None, None]:
        """Apply `soft_fail` and `never_fail` equally in every mode; Airflow's own rules differ by mode."""
        try:
            with airflow_errors():
                yield
        except NoukaiException as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(
                    f"Skipped, since the sensor has soft_fail or never_fail: {error}"
                ) from error
            raise
