"""The trigger that waits for a job while its task is deferred."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from airflow.providers.common.compat.sdk import conf
from airflow.triggers.base import TriggerEvent

from noukai_airflow._cancelling_trigger import CancellingTrigger
from noukai_airflow._compat import RESUMES_SAFELY
from noukai_airflow._kill_policy import USER_ENDED
from noukai_airflow._outcome import StatusUpdates, status_summary
from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_airflow._xcoms import JOB_ID, JOB_STATUS
from noukai_core.following import StepCount, log_steps

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_airflow.hooks.noukai import NoukaiHook
    from noukai_core import AsyncJob, AsyncNoukai, Job, JobStatus
    from noukai_core.following import Follow

log = logging.getLogger(__name__)

# How long the scheduler may take to notice that a worker's process has ended, once its supervisor has: it
# checks once per loop. A loop takes a second when there is nothing to do. On a busy machine the scheduler
# noticed the end up to 10.4 s after a trigger that had started without delay, 5 s of them due to the
# supervisor. The rest is room.
_SCHEDULER_SECONDS = 10.0

# A trigger that starts late shows that Airflow is busy. One to two seconds are usual, and up to 26 were
# measured. More than a minute means that the triggerer was down, and by then the end was noticed.
_LATE_FACTOR = 3.0
_LATE_SECONDS = 60.0

# A longer pause makes nothing safer.
_LONGEST_SCHEDULER_SECONDS = 30.0

# How much later Airflow's own limit is than the trigger's deadline. It is for triggers that do not run.
BACKSTOP_SECONDS = 30.0

# How long a trigger tries to read its connection. All triggers of a connection share each read.
_CONNECTION_SECONDS = 300.0
_CONNECTION_PAUSE = 10.0

LAST_POLL_SECONDS = 1.0
"""How long a wait may take whose deadline has passed: a job that has ended by then keeps its result."""


def wake_up_delay(late: float, *, resumes_safely: bool = RESUMES_SAFELY) -> float:
    """Return how long after the start of its trigger a task may be resumed at the earliest.

    Before Airflow 3.4, if the task is resumed and queued before the scheduler notices the end of the worker's
    process, the scheduler takes this for the end of the segment just queued, and fails the task: "finished
    with state success, but the task instance's state attribute is queued". Airflow's supervisor reports the
    end of every other process late: if the process closes its sockets just before it exits, the next check
    comes `min_heartbeat_interval` later.

    Nothing that a trigger can ask Airflow for shows that the scheduler has noticed: it records nothing about
    the end of a process whose task is deferred. So there is only a pause, and safe goes before prompt.

    Args:
        late: How long after the deferral the trigger started, in seconds.
        resumes_safely: Whether the scheduler does not make this mistake.
    """
    if resumes_safely:
        return 0.0
    heartbeat = float(conf.get("workers", "min_heartbeat_interval", fallback=5.0))
    busy = late * _LATE_FACTOR if late <= _LATE_SECONDS else 0.0
    return heartbeat + min(max(busy, _SCHEDULER_SECONDS), _LONGEST_SCHEDULER_SECONDS)


def backstop(deadline: float) -> timedelta:
    """Return how long Airflow lets a task with this deadline be deferred."""
    return timedelta(seconds=max(deadline - time.time(), 0.0) + BACKSTOP_SECONDS)


class NoukaiJobTrigger(CancellingTrigger):
    """Waits until a job ends, and resumes the task, which fetches the result itself.

    Args:
        job_id: The job.
        flow: Its flow as `org/project/slug`.
        noukai_conn_id: The Airflow connection. The key itself is not an argument, since arguments are stored.
        submitted_at: When the job was submitted, in ISO 8601. Shortly afterwards, the server may not know the
            job yet.
        deadline: When to stop waiting, in seconds since the epoch.
        poll_interval: A fixed pause between polls, in seconds; by default it grows with the age of the job.
        cancel_on_kill: Whether to cancel the job when a user ends the task.
        deferred_at: When the task was deferred, in seconds since the epoch.
        logged_state: The state of the job that the task has logged already.
        push_status: Whether the XCom `job_status` of the task is kept current.
        follow: What of the job is logged; see `NoukaiRunJobOperator`.
        logged_steps: How many steps of the job the task has logged already.
    """

    xcom_key = JOB_ID

    def __init__(
        self,
        job_id: str,
        flow: str,
        noukai_conn_id: str = "noukai_default",
        submitted_at: str | None = None,
        deadline: float | None = None,
        poll_interval: float | None = None,
        cancel_on_kill: bool = False,
        deferred_at: float | None = None,
        logged_state: str | None = None,
        push_status: bool = False,
        follow: Follow = "state",
        logged_steps: int = 0,
    ) -> None:
        super().__init__(cancel_on_kill=cancel_on_kill)
        self.job_id = job_id
        self.flow = flow
        self.noukai_conn_id = noukai_conn_id
        self.submitted_at = submitted_at
        self.deadline = deadline
        self.poll_interval = poll_interval
        self.deferred_at = deferred_at
        self.logged_state = logged_state
        self.push_status = push_status
        self.follow: Follow = follow
        self._steps = StepCount(logged_steps)
        self._updates = StatusUpdates(logged_state)
        self._state: str | None = None

    @classmethod
    def for_job(
        cls,
        job: Job,
        *,
        noukai_conn_id: str,
        deadline: float | None,
        poll_interval: float | None,
        cancel_on_kill: bool = False,
        push_status: bool = False,
        follow: Follow = "state",
        logged_steps: int = 0,
    ) -> Self:
        """Make the trigger for a task that is about to defer. For the arguments see the class."""
        return cls(
            job_id=job.id,
            flow=job.flow,
            noukai_conn_id=noukai_conn_id,
            submitted_at=job.submitted_at.isoformat() if job.submitted_at else None,
            deadline=deadline,
            poll_interval=poll_interval,
            cancel_on_kill=cancel_on_kill,
            deferred_at=time.time(),
            logged_state=str(job.last_status.state) if job.last_status else None,
            push_status=push_status,
            follow=follow,
            logged_steps=logged_steps,
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores to recreate this trigger."""
        return (
            "noukai_airflow.triggers.noukai.NoukaiJobTrigger",
            {
                "job_id": self.job_id,
                "flow": self.flow,
                "noukai_conn_id": self.noukai_conn_id,
                "submitted_at": self.submitted_at,
                "deadline": self.deadline,
                "poll_interval": self.poll_interval,
                "cancel_on_kill": self.cancel_on_kill,
                "deferred_at": self.deferred_at,
                "logged_state": self.logged_state,
                "push_status": self.push_status,
                "follow": self.follow,
                "logged_steps": self._steps.logged,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        clock = asyncio.get_running_loop().time
        started, delay = clock(), 0.0
        if self.deferred_at is not None:
            delay = wake_up_delay(max(0.0, time.time() - self.deferred_at))
        async with self.in_the_foreground():
            event = await self._wait()
        await asyncio.sleep(started + delay - clock())
        yield TriggerEvent(event.payload())  # type: ignore[no-untyped-call]

    async def _wait(self) -> JobEvent:
        """Wait for the job. This never raises: the task of a trigger that raises gets no event."""
        import noukai_core as core
        from noukai_airflow.exceptions import NoukaiPermanentException, NoukaiTransientException

        try:
            await self._watch()
            reason = Reason.FINISHED
        except core.JobTimeoutError:
            reason = Reason.TIMED_OUT
        except core.JobNotFoundError:
            reason = Reason.NOT_FOUND
        except core.ResponseTooLargeError as error:
            self.log.warning("Noukai job %s of %s: trigger failed: %s", self.job_id, self.flow, error)
            reason = Reason.RESPONSE_TOO_LARGE
        except (core.PermanentError, core.InvalidInputError, NoukaiPermanentException) as error:
            self.log.warning("Noukai job %s of %s: trigger failed: %s", self.job_id, self.flow, error)
            reason = Reason.PERMANENT_ERROR
        except (core.APIError, NoukaiTransientException) as error:
            self.log.warning("Noukai job %s of %s: trigger failed: %s", self.job_id, self.flow, error)
            reason = Reason.TRANSIENT_ERROR
        except Exception as error:
            self.log.exception("Noukai job %s of %s: trigger failed: %r", self.job_id, self.flow, error)
            reason = Reason.UNEXPECTED_ERROR
        return JobEvent(self.job_id, reason, self._state, time.time(), self._steps.logged)

    async def _watch(self) -> None:
        """Watch the job to its end. If the connection is changed, polling continues with its new content."""
        from noukai_airflow._client_cache import shared_async_client
        from noukai_airflow._connection_changes import until_changed
        from noukai_airflow.hooks.noukai import NoukaiHook
        from noukai_core import AuthenticationError

        hook = NoukaiHook(self.noukai_conn_id)
        settings = await self._settings(hook)
        while True:
            change: asyncio.Timeout | None = None
            try:
                async with (
                    shared_async_client(settings) as client,
                    until_changed(hook, settings) as change,
                    self._following(client),
                ):
                    await self._watch_over(client, settings.max_poll_bytes)
                return
            except AuthenticationError:
                renewed = await self._settings(hook, rejected=settings)
                if renewed == settings:
                    raise
            except TimeoutError:
                if change is None or not change.expired():
                    raise
                renewed = await self._settings(hook)
            self.log.info(
                "Noukai job %s of %s: connection changed (polling continues)", self.job_id, self.flow
            )
            settings = renewed

    async def _settings(
        self, hook: NoukaiHook, *, rejected: ConnectionSettings | None = None
    ) -> ConnectionSettings:
        """Read the connection. The task could read it, so an error may pass, as a secrets backend's does."""
        from noukai_airflow.exceptions import NoukaiPermanentException, NoukaiTransientException

        gives_up_at, failures = time.time() + min(_CONNECTION_SECONDS, self._remaining() or math.inf), 0
        while True:
            try:
                settings = await hook.aget_settings(rejected=rejected)
            except NoukaiPermanentException:
                raise
            except Exception as error:
                # `airflow dags test` runs a trigger outside of a triggerer, and no stored connection can be
                # read there.
                if getattr(self, "trigger_id", None) is None:
                    raise
                failures += 1
                reason = f"{self.noukai_conn_id!r}: {str(error) or type(error).__name__}"
                if time.time() >= gives_up_at:
                    raise NoukaiTransientException(f"connection not read: {reason}") from error
                if failures == 1:
                    self.log.warning("%s: connection not read (retrying): %s", self.subject, reason)
                await asyncio.sleep(_CONNECTION_PAUSE)
            else:
                if failures:
                    self.log.info("%s: connection read after %d failures", self.subject, failures)
                return settings

    async def _watch_over(self, client: AsyncNoukai, max_poll_bytes: int) -> None:
        """Record each change of the job. Only the state is read: the task fetches the result, on a worker."""
        changes = self._job(client).watch(
            timeout=self._remaining(),
            poll_interval=self.poll_interval,
            max_poll_bytes=max_poll_bytes,
            log_changes=self.follow is not None,
        )
        async with aclosing(changes):
            async for status in changes:
                self._state = status.state
                await self._push_status(status)

    def _following(self, client: AsyncNoukai) -> AbstractAsyncContextManager[None]:
        if self.follow != "steps":
            return nullcontext()
        return log_steps(self._job(client), log, self._steps)

    def _remaining(self) -> float | None:
        """Return the time until the deadline, or that for one poll if it has passed."""
        if self.deadline is None:
            return None
        return max(self.deadline - time.time(), LAST_POLL_SECONDS)

    @property
    def xcom_value(self) -> str:
        """The job."""
        return self.job_id

    @property
    def subject(self) -> str:
        """The job, as log lines begin."""
        return f"Noukai job {self.job_id} of {self.flow}"

    def log_failed_cancel(self, reason: str) -> None:
        """Log that a cancel was not possible."""
        from noukai_core import CancelOutcome

        CancelOutcome(self.job_id, self.flow, error=reason).log(USER_ENDED, self.log)

    async def cancel(self) -> None:
        """Cancel the job over separate connections: the trigger's cleanup runs at the same time."""
        from noukai_airflow._client_cache import new_async_client
        from noukai_airflow.hooks.noukai import NoukaiHook
        from noukai_core import acancel_job

        client = await new_async_client(await NoukaiHook(self.noukai_conn_id).aget_settings())
        try:
            outcome = await acancel_job(self._job(client), confirm=False)  # the time is limited
        finally:
            await client.aclose()
        outcome.log(USER_ENDED, self.log)

    async def _push_status(self, status: JobStatus) -> None:
        if not self.push_status or self.task_instance is None or not self._updates.is_due(status):
            return
        try:
            from noukai_airflow._task_states import push_status

            await push_status(self.task_instance, JOB_STATUS, status_summary(status))
        except Exception as error:  # the job is what matters
            self.push_status = False
            self.log.warning("Noukai job %s of %s: not recorded (%r)", self.job_id, self.flow, error)

    def _job(self, client: AsyncNoukai) -> AsyncJob:
        from noukai_core import JobStatus

        return client.flow(self.flow).attach(
            self.job_id,
            submitted_at=_parse_time(self.submitted_at),
            last_status=JobStatus(id=self.job_id, state=self.logged_state) if self.logged_state else None,
        )


def _parse_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
