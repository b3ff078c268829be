"""A trigger that cancels what it waits for when a user ends its task, and only then."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import ClassVar

from airflow.triggers.base import BaseTrigger

from noukai_airflow import _kill_policy
from noukai_airflow._compat import ON_KILL_MEANS_USER
from noukai_core.time_limit import time_limit

_KILL_SECONDS = 30.0

# How long to wait for a decision, so that there is time left for the cancel request. Without a decision the
# job is kept if on_kill may be a mistake: after a clear, the task's next try stops it.
_DECISION_SECONDS = 20.0
_DECISION_PAUSE = 1.0


class CancellingTrigger(BaseTrigger):
    """Decides in `on_kill` whether a user has ended the task.

    Args:
        cancel_on_kill: Whether to cancel when a user ends the task.

    Attributes:
        xcom_key: The XCom in which the task publishes what it waits for.
    """

    xcom_key: ClassVar[str]

    def __init__(self, *, cancel_on_kill: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # pyright: ignore[reportUnknownMemberType]
        self.cancel_on_kill = cancel_on_kill
        self._kill: asyncio.Task[None] | None = None

    @property
    @abstractmethod
    def xcom_value(self) -> str:
        """What this trigger waits for, as the task publishes it."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """What this trigger waits for, as log lines begin."""

    @abstractmethod
    async def cancel(self) -> None:
        """Cancel what this trigger waits for, over separate connections, and log what came of it."""

    @abstractmethod
    def log_failed_cancel(self, reason: str) -> None:
        """Log that a cancel was not possible."""

    def log_left_running(self, reason: str) -> None:
        """Log that what this trigger waits for is left running."""
        self.log.info("%s: left running (%s)", self.subject, reason)

    async def on_kill(self) -> None:
        """Cancel the job if a user ended the task.

        Airflow 3.3.0 to 3.3.2 interrupts this method after about one second, so a separate asyncio task does
        the work, and `cleanup` waits for it.
        """
        if not self.cancel_on_kill:
            self.log_left_running("cancel_on_kill is off")
            return
        self._kill = asyncio.create_task(self._end())
        await asyncio.shield(self._kill)

    @asynccontextmanager
    async def in_the_foreground(self) -> AsyncGenerator[None]:
        """Wait in this block. A person who interrupts `airflow dags test` there has ended the task.

        That command runs the trigger itself. In a triggerer, an interruption means that the trigger moves.
        """
        try:
            yield
        except asyncio.CancelledError:
            if getattr(self, "trigger_id", None) is None:
                if self.cancel_on_kill:
                    await self._end(by_user=True)
                else:
                    self.log_left_running("cancel_on_kill is off")
            raise

    async def cleanup(self) -> None:
        """Wait for a pending cancel, which takes a bounded time. Nothing else outlives `run`."""
        while self._kill is not None and not self._kill.done():
            try:
                await asyncio.shield(self._kill)
            except asyncio.CancelledError as interruption:
                # After a kill, Airflow interrupts again every second, with a message. An interruption without
                # one means that the triggerer is stopping.
                if not interruption.args:
                    raise

    async def _end(self, *, by_user: bool = False) -> None:
        try:
            async with time_limit(_KILL_SECONDS):
                reason = None if by_user else await self._reason_to_keep()
                if reason is None:
                    await self.cancel()
                    return
                self.log_left_running(reason)
        except TimeoutError:
            self.log_failed_cancel(f"no response within {_KILL_SECONDS:g} s")
        except Exception as error:
            self.log_failed_cancel(str(error))

    async def _reason_to_keep(self) -> str | None:
        """Return why the job must not be cancelled, or `None` if it must."""
        give_up_at = time.monotonic() + _DECISION_SECONDS
        while True:
            try:
                decision = await self._decide_by(give_up_at)
                unknown = "it is on its way to a worker"
            except Exception as error:
                decision, unknown = _kill_policy.KillDecision.UNDECIDED, str(error)
            if decision is _kill_policy.KillDecision.CANCEL:
                return None
            if decision is _kill_policy.KillDecision.KEEP:
                return "its task still waits for it"
            if time.monotonic() > give_up_at:
                if ON_KILL_MEANS_USER:
                    return None
                return f"who ended its task is not known: {unknown}"
            await asyncio.sleep(_DECISION_PAUSE)

    async def _decide_by(self, give_up_at: float) -> _kill_policy.KillDecision:
        """Decide in a bounded time. A request to Airflow that takes longer is left alone, not interrupted."""
        deciding = asyncio.create_task(self._decide())
        deciding.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.wait({deciding}, timeout=max(give_up_at - time.monotonic(), 0.0))
        if not deciding.done():
            raise TimeoutError("no response from Airflow in time")
        return deciding.result()

    async def _decide(self) -> _kill_policy.KillDecision:
        task = self.task_instance
        if task is None:
            return _kill_policy.KillDecision.CANCEL
        try:
            from noukai_airflow._task_states import published_by_task, state_of_task
        except ImportError:  # a later Airflow, which calls on_kill only when a user ends the task
            return _kill_policy.KillDecision.CANCEL
        state, current = await state_of_task(task), await published_by_task(task, self.xcom_key)
        if ON_KILL_MEANS_USER:
            return _kill_policy.decide_after_user_action(state, current, self.xcom_value)
        return _kill_policy.decide_in_triggerer(state, current, self.xcom_value)
