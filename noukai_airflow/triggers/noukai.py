"""The trigger that waits for a job while its task is deferred."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from airflow.providers.common.compat.sdk import conf
from airflow.triggers.base import BaseTrigger, TriggerEvent

from noukai_airflow import _kill_policy
from noukai_airflow._trigger_event import JobEvent, Reason

if TYPE_CHECKING:
    from noukai_core import AsyncJob, AsyncNoukai, Job, JobStatus

# What the scheduler may take to hear that a worker's process has ended: it looks once in each of its loops.
_SCHEDULER_SECONDS = 3.0

# The trigger's own deadline comes first; Airflow's is there for a trigger that does not run.
BACKSTOP_SECONDS = 30.0

_KILL_SECONDS = 30.0

# For how long a verdict is waited for, so that time is left for the cancel call. Without one the job is kept:
# after a clear, the task's next try stops it.
_DECISION_SECONDS = 20.0
_DECISION_PAUSE = 1.0


def wake_up_delay() -> float:
    """Return for how long a task is left alone after its deferral.

    When the scheduler hears of the end of the worker's process only after the task has been woken and queued
    again, it takes this end for that of the part just queued, and fails the task: "finished with state
    success, but the task instance's state attribute is queued". Airflow's supervisor may report the end late:
    if the process closes its sockets just before it is gone, the next look comes `min_heartbeat_interval`
    later.
    """
    heartbeat = float(conf.get("workers", "min_heartbeat_interval", fallback=5.0))
    return heartbeat + _SCHEDULER_SECONDS


def backstop(deadline: float) -> timedelta:
    """Return for how long Airflow itself lets a task with this deadline be deferred."""
    return timedelta(seconds=max(deadline - time.time(), 0.0) + BACKSTOP_SECONDS)


class NoukaiJobTrigger(BaseTrigger):
    """Waits for the end of a job, and tells the task that it ended. The task fetches the result itself.

    Args:
        job_id: The job.
        flow: Its flow as `org/project/slug`.
        noukai_conn_id: The Airflow connection. The key itself is no argument, since arguments are stored.
        submitted_at: When the job was submitted, in ISO 8601. Just after it, the server may not know the job
            yet.
        deadline: When to give up waiting, in seconds since the epoch.
        poll_interval: A fixed pause between looks, in seconds; by default it grows with the age of the job.
        cancel_on_kill: Whether the job is cancelled when a user ends the task.
        not_before: The earliest moment at which the task is woken, in seconds since the epoch.
    """

    def __init__(
        self,
        job_id: str,
        flow: str,
        noukai_conn_id: str = "noukai_default",
        submitted_at: str | None = None,
        deadline: float | None = None,
        poll_interval: float | None = None,
        cancel_on_kill: bool = False,
        not_before: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # pyright: ignore[reportUnknownMemberType]
        self.job_id = job_id
        self.flow = flow
        self.noukai_conn_id = noukai_conn_id
        self.submitted_at = submitted_at
        self.deadline = deadline
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.not_before = not_before
        self._kill: asyncio.Task[None] | None = None

    @classmethod
    def of_deferral(
        cls,
        job: Job,
        *,
        noukai_conn_id: str,
        deadline: float | None,
        poll_interval: float | None,
        cancel_on_kill: bool = False,
    ) -> Self:
        """Make the trigger of a task that is about to defer. For the arguments see the class."""
        return cls(
            job_id=job.id,
            flow=job.flow,
            noukai_conn_id=noukai_conn_id,
            submitted_at=job.submitted_at.isoformat() if job.submitted_at else None,
            deadline=deadline,
            poll_interval=poll_interval,
            cancel_on_kill=cancel_on_kill,
            not_before=time.time() + wake_up_delay(),
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores to make this trigger again."""
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
                "not_before": self.not_before,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        event = await self._wait()
        if self.not_before is not None:
            # Never longer than that, however far the clocks of two machines are apart.
            await asyncio.sleep(min(self.not_before - time.time(), wake_up_delay()))
        yield TriggerEvent(event.payload())  # type: ignore[no-untyped-call]

    async def _wait(self) -> JobEvent:
        """Wait for the job, and never raise: a trigger that raises tells its task nothing."""
        import noukai_core as core
        from noukai_airflow.exceptions import NoukaiPermanentException

        state: str | None = None
        try:
            async for status in self._statuses():
                state = status.state
            reason = Reason.FINISHED
        except core.JobTimeoutError:
            reason = Reason.DEADLINE
        except core.JobNotFoundError:
            reason = Reason.NOT_FOUND
        except (
            core.PermanentError,
            core.InvalidInputError,
            core.ResponseTooLargeError,
            NoukaiPermanentException,
        ) as error:
            self.log.warning("Noukai job %s: %s", self.job_id, error)
            reason = Reason.REFUSED
        except core.APIError as error:
            self.log.warning("Noukai job %s: %s", self.job_id, error)
            reason = Reason.UNAVAILABLE
        except Exception:
            self.log.exception("Noukai job %s: the trigger cannot wait for it", self.job_id)
            reason = Reason.ERROR
        return JobEvent(self.job_id, reason, state)

    async def _statuses(self) -> AsyncIterator[JobStatus]:
        """Show what is new of the job. A key that was replaced in the connection is taken up."""
        from noukai_airflow._client_cache import shared_async_client
        from noukai_airflow.hooks.noukai import NoukaiHook
        from noukai_core import AuthenticationError

        hook = NoukaiHook(self.noukai_conn_id)
        settings = await hook.aget_settings()
        while True:
            try:
                async with shared_async_client(settings) as client:
                    watch = self._job(client).watch(timeout=self._left(), poll_interval=self.poll_interval)
                    async for status in watch:
                        yield status
                return
            except AuthenticationError:
                renewed = await hook.aget_settings(other_than=settings)
                if renewed == settings:
                    raise
                self.log.info("Noukai job %s: the connection has changed; waiting on with it", self.job_id)
                settings = renewed

    def _left(self) -> float | None:
        """Return the time until the deadline; never 0, since a past deadline still gets one look."""
        if self.deadline is None:
            return None
        return max(self.deadline - time.time(), 0.001)

    async def on_kill(self) -> None:
        """Cancel the job, if it was a user who ended the task.

        Airflow 3.3.0 to 3.3.2 interrupts this method after about one second, so the work is done in a task of
        its own, which `cleanup` waits for.
        """
        if not self.cancel_on_kill:
            self.log.info("Noukai job %s goes on: cancel_on_kill is off", self.job_id)
            return
        self._kill = asyncio.create_task(self._end_job())
        await asyncio.shield(self._kill)

    async def cleanup(self) -> None:
        """Wait for a cancel that is under way; nothing else outlives `run`.

        The cancel takes a bounded time.
        """
        while self._kill is not None and not self._kill.done():
            try:
                await asyncio.shield(self._kill)
            except asyncio.CancelledError as interruption:
                # Airflow repeats what made it call on_kill every second, with a message. Without one, it is
                # the triggerer that ends.
                if not interruption.args:
                    raise

    async def _end_job(self) -> None:
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                if await self._decision() is _kill_policy.KillDecision.KEEP:
                    self.log.info("Noukai job %s goes on: its task still waits for it", self.job_id)
                    return
                await self._cancel()
        except TimeoutError:
            self.log.warning("Noukai job %s may still run: cancelling it took too long", self.job_id)
        except Exception as error:
            self.log.warning("Noukai job %s may still run: cancelling it failed: %s", self.job_id, error)

    async def _decision(self) -> _kill_policy.KillDecision:
        decided_by = time.monotonic() + _DECISION_SECONDS
        while True:
            error_seen: Exception | None = None
            try:
                decision = await self._decide()
            except Exception as error:
                decision, error_seen = _kill_policy.KillDecision.UNDECIDED, error
            if decision is not _kill_policy.KillDecision.UNDECIDED:
                return decision
            if time.monotonic() > decided_by:
                if error_seen is not None:
                    self.log.warning("Airflow does not tell the state of the task: %s", error_seen)
                return _kill_policy.KillDecision.KEEP
            await asyncio.sleep(_DECISION_PAUSE)

    async def _decide(self) -> _kill_policy.KillDecision:
        task = self.task_instance
        if task is None:
            return _kill_policy.KillDecision.CANCEL
        try:
            from noukai_airflow._task_states import job_of_task, state_of_task
        except ImportError:  # Airflow's internals have moved on, and with them, one hopes, the fault
            return _kill_policy.KillDecision.CANCEL
        return _kill_policy.in_triggerer(await state_of_task(task), await job_of_task(task), self.job_id)

    async def _cancel(self) -> None:
        """Cancel over connections of its own: the trigger's cleanup runs at the same time."""
        from noukai_airflow._client_cache import new_async_client
        from noukai_airflow.hooks.noukai import NoukaiHook

        client = await new_async_client(await NoukaiHook(self.noukai_conn_id).aget_settings())
        try:
            await self._job(client).cancel()
        finally:
            await client.aclose()
        self.log.info("Noukai job %s: cancelled, since a user ended its task", self.job_id)

    def _job(self, client: AsyncNoukai) -> AsyncJob:
        return client.flow(self.flow).attach(self.job_id, submitted_at=_moment(self.submitted_at))


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
