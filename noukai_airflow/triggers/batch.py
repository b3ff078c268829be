"""The trigger that waits for the jobs of a batch while its task is deferred."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.triggers.base import TriggerEvent

from noukai_airflow._batch_outcome import PROGRESS_SECONDS, deferred_status
from noukai_airflow._cancelling_trigger import CancellingTrigger
from noukai_airflow._xcoms import BATCH_ID, BATCH_STATUS
from noukai_airflow.triggers.noukai import wake_up_delay

# A list of jobs is only a hint. After this time, the task itself polls the jobs.
_TRUST_SECONDS = 3600.0

TRIGGER_FAILED = "trigger failed"
"""The reason of the event after which the task waits on the worker."""


class NoukaiBatchTrigger(CancellingTrigger):
    """Waits until enough jobs of a batch have ended, and resumes the task, which fetches the results itself.

    It knows the sessions of the jobs, each of which groups up to a hundred of them, and not the jobs.

    Args:
        sessions: How many jobs each session has, including those that have ended.
        batch_id: The batch.
        flow: The flow of the jobs as `org/project/slug`.
        noukai_conn_id: The Airflow connection. The key itself is not an argument, since arguments are stored.
        until: The task is resumed when at most this number of jobs has not ended.
        deadline: When to resume it in any case, in seconds since the epoch.
        poll_interval: A fixed pause between polls, in seconds; by default it grows with the age of the jobs.
        cancel_on_kill: Whether to cancel the jobs when a user ends the task.
        status: The XCom `batch_status` when the task was deferred. It is kept current from then on; `None` to
            push none.
        total: How many inputs there are, if that is known.
        deferred_at: When the task was deferred, in seconds since the epoch.
    """

    xcom_key = BATCH_ID

    def __init__(
        self,
        sessions: Mapping[str, int],
        batch_id: str,
        flow: str,
        noukai_conn_id: str = "noukai_default",
        until: int = 0,
        deadline: float | None = None,
        poll_interval: float | None = None,
        cancel_on_kill: bool = False,
        status: Mapping[str, Any] | None = None,
        total: int | None = None,
        deferred_at: float | None = None,
    ) -> None:
        super().__init__(cancel_on_kill=cancel_on_kill)
        self.sessions = dict(sessions)
        self.batch_id = batch_id
        self.flow = flow
        self.noukai_conn_id = noukai_conn_id
        self.until = until
        self.deadline = deadline
        self.poll_interval = poll_interval
        self.status = None if status is None else dict(status)
        self.total = total
        self._unfinished: int | None = None
        self.deferred_at = time.time() if deferred_at is None else deferred_at

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow stores to recreate this trigger."""
        return (
            "noukai_airflow.triggers.batch.NoukaiBatchTrigger",
            {
                "sessions": self.sessions,
                "batch_id": self.batch_id,
                "flow": self.flow,
                "noukai_conn_id": self.noukai_conn_id,
                "until": self.until,
                "deadline": self.deadline,
                "poll_interval": self.poll_interval,
                "cancel_on_kill": self.cancel_on_kill,
                "status": self.status,
                "total": self.total,
                "deferred_at": self.deferred_at,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event. Whatever it says, the task polls its jobs."""
        clock = asyncio.get_running_loop().time
        publishing = asyncio.create_task(self._publish())
        started, delay = clock(), wake_up_delay(max(0.0, time.time() - self.deferred_at))
        try:
            async with self.in_the_foreground():
                reason = f"{await self._wait()} jobs have not ended"
        except Exception as error:
            self.log.warning("%s: trigger failed: %s", self.subject, error)
            reason = TRIGGER_FAILED
        finally:
            publishing.cancel()
        await asyncio.sleep(started + delay - clock())
        yield TriggerEvent({"batch_id": self.batch_id, "reason": reason})  # type: ignore[no-untyped-call]

    async def _wait(self) -> int:
        from noukai_airflow._client_cache import shared_async_client
        from noukai_airflow.hooks.noukai import NoukaiHook

        now = time.time()
        timeout = _TRUST_SECONDS if self.deadline is None else min(_TRUST_SECONDS, self.deadline - now)
        settings = await NoukaiHook(self.noukai_conn_id).aget_settings()
        async with shared_async_client(settings) as client:
            return await client.flow(self.flow).wait_for_sessions(
                self.sessions,
                until=self.until,
                age=max(0.0, now - self.deferred_at),
                timeout=max(timeout, 0.0),
                poll_interval=self.poll_interval,
                report=self._note,
            )

    def _note(self, unfinished: int) -> None:
        self._unfinished = unfinished

    async def _publish(self) -> None:
        """Write how far the batch is, to the log and the XCom, when that has changed."""
        published = None
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            if self._unfinished is None or self._unfinished == published:
                continue
            published = self._unfinished
            status = deferred_status(self.status or {}, total=self.total, unfinished=published)
            self.log.info("%s: progress %s", self.subject, status["progress"])
            if self.status is not None and self.task_instance is not None:
                await self._push(status)

    async def _push(self, status: dict[str, Any]) -> None:
        try:
            from noukai_airflow._task_states import push_status

            await push_status(self.task_instance, BATCH_STATUS, status)
        except Exception as error:  # the jobs are what matters
            self.status = None
            self.log.warning("%s: not recorded (%r)", self.subject, error)

    @property
    def xcom_value(self) -> str:
        """The batch."""
        return self.batch_id

    @property
    def subject(self) -> str:
        """The batch, as log lines begin."""
        return f"Noukai batch of {self.flow}"

    def log_failed_cancel(self, reason: str) -> None:
        """Log that a cancel was not possible, with the sessions in which jobs may still be running."""
        from noukai_airflow._batch_sessions import log_failed_cancel

        log_failed_cancel(self.flow, self.sessions, reason, self.log)

    def log_left_running(self, reason: str) -> None:
        """Log that the jobs are left running, with their sessions."""
        super().log_left_running(f"{reason}; sessions {', '.join(sorted(self.sessions))}")

    async def cancel(self) -> None:
        """Cancel all jobs that have not ended, over separate connections."""
        from noukai_airflow._batch_sessions import cancel_sessions, log_cancelled_sessions
        from noukai_airflow._client_cache import new_async_client
        from noukai_airflow.hooks.noukai import NoukaiHook

        client = await new_async_client(await NoukaiHook(self.noukai_conn_id).aget_settings())
        try:
            cancelled = await cancel_sessions(client.flow(self.flow), self.sessions, self.log)
        finally:
            await client.aclose()
        log_cancelled_sessions(self.flow, cancelled, self.log)
