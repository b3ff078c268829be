"""Where the code runs: in which flow run and task run, and whether Prefect requires it to stop."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import takewhile
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

if TYPE_CHECKING:
    LoggerOrAdapter = logging.Logger | logging.LoggerAdapter[logging.Logger]

C = TypeVar("C", FlowRunContext, TaskRunContext)

INTERRUPT: ContextVar[threading.Event | None] = ContextVar("noukai_interrupt", default=None)
"""Is set when a person interrupts the thread that waits for this code, which runs in another one."""

# Prefect takes the start of a task from one clock, and measures its timeout with another.
_CLOCK_SLACK = 0.2

# Where SIGALRM has a handler, as inside another flow with a timeout, Prefect ends a flow by an exception from
# another thread, which does not interrupt `future.result()`. So long after a timeout, a task stops by itself.
_OVERDUE_SECONDS = 2.0


@dataclass(frozen=True)
class RunContext:
    """The runs that the current code belongs to.

    Attributes:
        flow_run_id: The flow run, if there is one.
        task_run_id: The task run, if there is one.
        task_attempt: How often the task run has been started.
        times_out_at: When the first of Prefect's timeouts expires, on the monotonic clock: of the task, the
            flow run, or a task or flow run that called them.
        cancel_event: Prefect's event for a task that runs in a thread, or that was called by one that does.
        called_by: The task run that represents this flow run in its parent, if it is a subflow run.
        enclosing: The task runs of this flow run inside which the task was called, the innermost first, each
            with how often it has been started.
        attempt: An object that exists exactly as long as this attempt of the flow run in this process; for a
            task without a flow, as long as this attempt of the outermost task.
        called_by_task: Whether a task called the code: directly, or the flow run that it belongs to.
        flow_runs: The flow run and those that called it, the innermost first, each with how often it has been
            started, as far as this process knows.
        detached_attempt: Identifies this execution of the flow run, even a resumed one, if the task has only
            a copy of the flow's context: in a process pool, with Dask or Ray, and in the background.
        local: Whether it is known that no deployment has started the flow run, or one that called it.
        began_late: Whether one of Prefect's timeouts had expired before the code began.
        cancel_on_timeout: Whether Prefect's timeouts cancel the jobs, as the caller of the task chose.
    """

    flow_run_id: UUID | None
    task_run_id: UUID | None
    task_attempt: int
    times_out_at: float | None
    cancel_event: threading.Event | None
    called_by: UUID | None = None
    enclosing: tuple[tuple[UUID, int], ...] = ()
    attempt: FlowRunContext | TaskRunContext | None = None
    called_by_task: bool = False
    flow_runs: tuple[tuple[UUID, int], ...] = ()
    detached_attempt: str | None = None
    local: bool = False
    began_late: bool = False
    cancel_on_timeout: bool = True

    @classmethod
    def current(cls) -> RunContext:
        """Return where the calling code runs."""
        task, flow = TaskRunContext.get(), FlowRunContext.get()
        enclosing = _enclosing(task)
        task_run = task.task_run if task else None
        flow_run = flow.flow_run if flow else None
        times_out_at = _times_out_at(task, flow)
        return cls(
            flow_run_id=flow_run.id if flow_run else task_run.flow_run_id if task_run else None,
            task_run_id=task_run.id if task_run else None,
            task_attempt=task_run.run_count if task_run else 1,
            times_out_at=times_out_at,
            cancel_event=_cancel_event(task, flow),
            called_by=flow_run.parent_task_run_id if flow_run else None,
            enclosing=tuple((one.task_run.id, one.task_run.run_count) for one in enclosing),
            attempt=flow or (enclosing[-1] if enclosing else task),
            called_by_task=len(list(_with_callers(task))) > 1,
            flow_runs=_flow_runs(flow),
            detached_attempt=_execution(flow_run) if flow and flow_run and flow.detached else None,
            local=_is_local(flow),
            began_late=times_out_at is not None and time.monotonic() >= times_out_at,
        )

    @property
    def scope(self) -> UUID | None:
        """The id that stays the same when the code runs again, even if a subflow gets a new flow run."""
        return self.called_by or self.flow_run_id or self.outermost_task

    @property
    def outermost_task(self) -> UUID | None:
        """The task run that was not called inside another one of the flow run."""
        return self.enclosing[-1][0] if self.enclosing else self.task_run_id

    @property
    def recorded_on(self) -> UUID | None:
        """The task run of the artifacts that keep records: without a flow, the one that a rerun has again."""
        return self.outermost_task if self.flow_run_id is None else self.task_run_id

    @property
    def timed_out(self) -> bool:
        """Whether one of Prefect's timeouts has expired."""
        return self.times_out_at is not None and time.monotonic() >= self.times_out_at - _CLOCK_SLACK

    @property
    def _overdue(self) -> bool:
        if self.times_out_at is None or self.detached_attempt is not None:  # then another clock counts
            return False
        if self.began_late and in_main_thread():  # it goes on after the timeout, as its caller wants
            return False
        return time.monotonic() >= self.times_out_at + _OVERDUE_SECONDS

    @property
    def stop_requested(self) -> bool:
        """Whether a task that nothing interrupts has to stop.

        That is a task in a thread. Prefect sets an event for it, but sets it too when the flow merely
        ended before the task; the main thread shows why the flow ended. An async flow that blocks its event
        loop with `future.result()` never gets that far when it is interrupted. In the main thread, a timeout
        raises an exception only once, which is lost in a callback of the event loop.
        """
        if self._overdue or (_interrupts() > 0 and not in_main_thread()):
            return True
        if self.cancel_event is None or not self.cancel_event.is_set():
            return False
        return self.timed_out or _exception_of_flow() is not None

    @property
    def must_ask_server(self) -> bool:
        """Whether only Prefect's server knows that the task has to stop.

        The event for a task in a thread is a private part of Prefect, which its next version may not have.
        Prefect does not notify a task in a separate process, such as one of a process pool or of Ray.
        """
        in_thread = not in_main_thread()
        in_process = self.detached_attempt is not None or multiprocessing.parent_process() is not None
        no_event = self.cancel_event is None or self.cancel_event.is_set()
        return (in_thread or in_process) and self.flow_run_id is not None and no_event

    def logger(self) -> LoggerOrAdapter:
        """Return the logger of the run; outside a run, the package's own."""
        try:
            return get_run_logger()
        except MissingContextError:
            return get_logger("noukai_prefect")


def timed_in_thread() -> bool:
    """Return whether Prefect's timeout of a task may raise an exception anywhere in this thread."""
    timed = any(task.task.timeout_seconds is not None for task in _with_callers(TaskRunContext.get()))
    return timed and not in_main_thread()


def in_main_thread() -> bool:
    """Return whether the calling code runs in the main thread, where Prefect raises timeouts."""
    return threading.current_thread() is threading.main_thread()


def _with_callers(context: C | None) -> Iterator[C]:
    """Yield a context and those of the runs inside which its run was called, the innermost first.

    Prefect has no public access to them: a context knows the one before it only from how it is taken back.
    """
    while context is not None:
        yield context
        run = _run_of(context)
        while context is not None and _run_of(context) == run:  # Prefect enters that of a run more than once
            token: Any = getattr(context, "_token", None)
            outer: Any = getattr(token, "old_value", None)
            context = outer if isinstance(outer, type(context)) else None


def _run_of(context: FlowRunContext | TaskRunContext) -> UUID | None:
    if isinstance(context, TaskRunContext):
        return context.task_run.id
    return context.flow_run.id if context.flow_run else None


def _enclosing(task: TaskRunContext | None) -> list[TaskRunContext]:
    """Return the contexts of the tasks of the same flow run inside which a task was called."""
    if task is None:
        return []
    flow_run_id = task.task_run.flow_run_id
    return list(takewhile(lambda one: one.task_run.flow_run_id == flow_run_id, _with_callers(task)))[1:]


def _execution(flow_run: FlowRun) -> str:
    """Return what all tasks of an execution have in common. A resumed one is no other run to Prefect."""
    return f"{flow_run.run_count}:{flow_run.state.id if flow_run.state else None}"


def _flow_runs(flow: FlowRunContext | None) -> tuple[tuple[UUID, int], ...]:
    """Return a flow run and those that called it, each with how often it has been started."""
    runs = [context.flow_run for context in _with_callers(flow)]
    return tuple((run.id, run.run_count) for run in runs if run is not None)


def _is_local(flow: FlowRunContext | None) -> bool:
    """Return whether a flow run and all that called it are known here, and none of them has a deployment."""
    runs = [context.flow_run for context in _with_callers(flow)]
    if not runs or runs[-1] is None or runs[-1].parent_task_run_id is not None:
        return False
    return all(run is not None and run.deployment_id is None for run in runs)


def _times_out_at(task: TaskRunContext | None, flow: FlowRunContext | None) -> float | None:
    limits = [(one.start_time, one.task.timeout_seconds) for one in _with_callers(task)]
    limits += [(one.start_time, one.flow.timeout_seconds) for one in _with_callers(flow) if one.flow]
    ends = [start.timestamp() + seconds for start, seconds in limits if seconds is not None]
    return time.monotonic() + min(ends) - time.time() if ends else None


def _cancel_event(task: TaskRunContext | None, flow: FlowRunContext | None) -> threading.Event | None:
    """Return the event that stops a submitted task. Prefect has no public access to it (issue #15873)."""
    task_run_ids = [one.task_run.id for one in _with_callers(task)]
    for one in _with_callers(flow):
        events: Any = getattr(one.task_runner, "_cancel_events", None)
        for task_run_id in task_run_ids:
            event = events.get(task_run_id) if isinstance(events, dict) else None  # pyright: ignore
            if isinstance(event, threading.Event):
                return event
    return None


def interrupted_by_a_person() -> bool:
    """Return whether this process was interrupted from its terminal."""
    interrupt, cause = INTERRUPT.get(), _exception_of_flow()
    if interrupt is not None and interrupt.is_set():
        return True
    return _interrupts() > 0 or (cause is not None and issubclass(cause, KeyboardInterrupt))


def _interrupts() -> int:
    """Count the interrupts that `asyncio.Runner` has turned into a cancellation (Python 3.11)."""
    runner = getattr(getattr(signal.getsignal(signal.SIGINT), "func", None), "__self__", None)
    return int(getattr(runner, "_interrupt_count", 0))


def _exception_of_flow() -> type[BaseException] | None:
    """Return the exception with which the main thread leaves the task runner; there it waits for tasks."""
    main = threading.main_thread().ident
    frames: dict[int, FrameType] = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    frame = frames.get(main) if main is not None else None
    while frame is not None:
        if frame.f_code.co_name == "__exit__" and "task_runners" in frame.f_code.co_filename:
            error_type: Any = frame.f_locals.get("exc_type")
            if isinstance(error_type, type) and issubclass(error_type, BaseException):
                return error_type
            return None
        frame = frame.f_back
    return None
