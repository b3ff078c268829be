"""The sensor that waits for a Noukai job which something else has submitted."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException, conf
from airflow.sdk import BaseSensorOperator, PokeReturnValue

from noukai_airflow._arguments import Duration
from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_airflow._xcoms import JOB_STATUS, reported, task_instance_of
from noukai_airflow.exceptions import (
    NoukaiException,
    NoukaiJobFailedException,
    NoukaiSensorJobFailedException,
    airflow_errors,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from noukai_airflow._lineage import Lineage
    from noukai_airflow.hooks.noukai import NoukaiHook
    from noukai_core import Job, JobStatus

_STATES = frozenset({"completed", "failed", "cancelled"})
_DEFAULT_POKE_SECONDS = 60.0


class NoukaiJobSensor(BaseSensorOperator):
    """Waits until a job has completed, and returns its output.

    It never cancels the job, which is not its own.

    A fault that passes is not an outcome: the sensor waits on until its `timeout`. A job that failed or was
    cancelled fails the sensor at once and without a retry, since it stays so.

    Args:
        job_id: The job. Templated, like the flow and the connection.
        flow: The job's flow, as `org/project/slug`, or as a slug alone when the connection has org and
            project.
        noukai_conn_id: The Airflow connection.
        allowed_states: The final states that let the sensor pass; of `completed`, `failed` and `cancelled`.
        deferrable: Whether to wait in the triggerer. By default what `[operators] default_deferrable` says.
        poke_interval: The pause between looks. By default 60 seconds, and in the triggerer a tenth of the
            time waited, between 1 and 60 seconds.
        **kwargs: What every sensor takes, such as `timeout`, `soft_fail` and `mode`.
    """

    template_fields: Sequence[str] = (  # pyright: ignore[reportIncompatibleVariableOverride]
        "job_id",
        "flow",
        "noukai_conn_id",
    )
    ui_color = "#efe7fb"

    def __init__(
        self,
        *,
        job_id: str,
        flow: str,
        noukai_conn_id: str = "noukai_default",
        allowed_states: Collection[str] = ("completed",),
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: Duration | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            poke_interval=_DEFAULT_POKE_SECONDS if poke_interval is None else poke_interval, **kwargs
        )
        if not allowed_states or isinstance(allowed_states, str) or not set(allowed_states) <= _STATES:
            raise ValueError(
                f"allowed_states is {allowed_states!r}, but must be some of {', '.join(sorted(_STATES))}"
            )
        self.job_id = job_id
        self.flow = flow
        self.noukai_conn_id = noukai_conn_id
        self.allowed_states = tuple(sorted(set(allowed_states)))
        self.deferrable = deferrable
        self._interval = None if poke_interval is None else self.poke_interval
        self._began: datetime | None = None

    def execute(self, context: Context) -> Any:
        """Wait on the worker, or look once and wait in the triggerer."""
        self._began = self._beginning(context)
        if not self.deferrable:
            return super().execute(context)
        done = self.poke(context)
        if done:
            return done.xcom_value
        return self._defer(time.time() + self.timeout)

    def poke(self, context: Context) -> PokeReturnValue:
        """Look at the job once."""
        with self._failing_softly():
            return self._read(context) or PokeReturnValue(is_done=False)

    def _read(self, context: Context) -> PokeReturnValue | None:
        """Look at the job; `None` when a fault that passes was in the way."""
        import noukai_core as core

        try:
            status = self._job().status()
        except (core.TransientError, core.InvalidResponseError) as error:
            if not error.retryable:
                raise
            self.log.warning("Noukai job %s: a look failed; waiting on: %s", self.job_id, error)
            return None
        if not status.finished:
            self.log.info("Noukai job %s is %s", self.job_id, status.state)
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._result(context, status))

    def execute_complete(self, context: Context, event: object = None, deadline: float | None = None) -> Any:
        """Go on after the trigger's event.

        What the event says is checked with the server before anything comes of it.
        """
        read = JobEvent.about(self.job_id, JobEvent.read(event))
        with self._failing_softly():
            seen = self._read(context)
            if seen:
                return seen.xcom_value
            if deadline is not None and time.time() >= deadline:
                raise AirflowSensorTimeout(f"Noukai job {self.job_id} did not end within {self.timeout:g} s")
            if seen is None or (read is not None and read.reason is Reason.UNAVAILABLE):
                return self._defer(deadline if deadline is not None else time.time() + self.timeout)
            raise NoukaiException(
                f"The trigger stopped waiting for Noukai job {self.job_id} "
                f"({read.reason if read else 'unknown event'}), but the job has not ended.",
                job_id=self.job_id,
            )

    def get_openlineage_facets_on_start(self) -> Lineage:
        """Tell OpenLineage the job."""
        from noukai_airflow._lineage import job_lineage

        return job_lineage(self.flow, self.job_id)

    def _result(self, context: Context, status: JobStatus) -> Any:
        if self.do_xcom_push:
            task_instance_of(context).xcom_push(JOB_STATUS, reported(status))
        if status.state in self.allowed_states:
            return status.result.output if status.result else None
        try:
            with airflow_errors():
                return status.result_or_raise().output
        except NoukaiJobFailedException as error:
            raise NoukaiSensorJobFailedException(str(error), job_id=error.job_id) from error

    def _defer(self, deadline: float) -> None:
        from noukai_airflow.triggers.noukai import NoukaiJobTrigger, backstop

        self.defer(
            trigger=NoukaiJobTrigger.of_deferral(
                self._job(),
                noukai_conn_id=self.noukai_conn_id,
                deadline=deadline,
                poll_interval=self._interval,
            ),
            method_name="execute_complete",
            kwargs={"deadline": deadline},
            timeout=backstop(deadline),
        )

    @cached_property
    def _hook(self) -> NoukaiHook:
        from noukai_airflow.hooks.noukai import NoukaiHook

        return NoukaiHook(self.noukai_conn_id)

    def _job(self) -> Job:
        client = self._hook.get_conn()
        # Just after its submission the server may not know a job yet. When that was is not known here, so it
        # counts from the moment at which the sensor began.
        return client.flow(self.flow).attach(self.job_id, submitted_at=self._began)

    def _beginning(self, context: Context) -> datetime:
        first = task_instance_of(context).get_first_reschedule_date(context) if self.reschedule else None
        return first or datetime.now(UTC)

    @contextmanager
    def _failing_softly(self) -> Generator[None, None, None]:
        """Apply `soft_fail` and `never_fail` alike in every mode; Airflow's own rules differ by mode."""
        try:
            with airflow_errors():
                yield
        except NoukaiException as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(f"Skipped, since the sensor fails softly: {error}") from error
            raise
