"""Where the code runs: in which flow run and task run, and whether Prefect requires it to stop."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

if TYPE_CHECKING:
    LoggerOrAdapter = logging.Logger | logging.LoggerAdapter[logging.Logger]


# Prefect takes the start of a task from one clock, and measures its timeout with another.
_CLOCK_SLACK = 0.2


@dataclass(frozen=True)
class RunContext:
    """The runs that the current code belongs to.

    Attributes:
        flow_run_id: The flow run, if there is one.
        task_run_id: The task run, if there is one.
        task_attempt: How often the task run has been started.
        times_out_at: When Prefect's timeout of the task or of the flow expires, on the monotonic clock.
        cancel_event: Prefect's event for a task that runs in a thread.
        called_by: The task run that represents this flow run in its parent, if it is a subflow run.
        enclosing: The task runs of this flow run inside which the task was called, the innermost first, each
            with how often it has been started.
        attempt: An object that exists exactly as long as this attempt of the flow run in this process; for a
            task without a flow, as long as this attempt of the outermost task.
        detached_attempt: Identifies this attempt of the flow run, if the task has only a copy of the flow's
            context: in a process pool, with Dask or Ray, and in the background.
    """

    flow_run_id: UUID | None
    task_run_id: UUID | None
    task_attempt: int
    times_out_at: float | None
    cancel_event: threading.Event | None
    called_by: UUID | None = None
    enclosing: tuple[tuple[UUID, int], ...] = ()
    attempt: FlowRunContext | TaskRunContext | None = None
    detached_attempt: str | None = None

    @classmethod
    def current(cls) -> RunContext:
        """Return where the calling code runs."""
        task, flow = TaskRunContext.get(), FlowRunContext.get()
        enclosing = _enclosing(task)
        task_run = task.task_run if task else None
        flow_run = flow.flow_run if flow else None
        return cls(
            flow_run_id=flow_run.id if flow_run else task_run.flow_run_id if task_run else None,
            task_run_id=task_run.id if task_run else None,
            task_attempt=task_run.run_count if task_run else 1,
            times_out_at=_times_out_at(task, flow),
            cancel_event=_cancel_event(flow, task_run.id if task_run else None),
            called_by=flow_run.parent_task_run_id if flow_run else None,
            enclosing=tuple((one.task_run.id, one.task_run.run_count) for one in enclosing),
            attempt=flow or (enclosing[-1] if enclosing else task),
            detached_attempt=str(flow_run.run_count) if flow and flow_run and flow.detached else None,
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
        """Whether Prefect's timeout of the task or of the flow has expired."""
        return self.times_out_at is not None and time.monotonic() >= self.times_out_at - _CLOCK_SLACK

    @property
    def stop_requested(self) -> bool:
        """Whether a task that runs in a thread has to stop.

        Nothing interrupts such a task. Prefect sets an event for it, but sets it too when the flow merely
        ended before the task; the main thread shows why the flow ended. An async flow that blocks its event
        loop with `future.result()` never gets that far when it is interrupted.
        """
        if threading.current_thread() is not threading.main_thread() and _interrupts() > 0:
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
        in_thread = threading.current_thread() is not threading.main_thread()
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
    """Return whether Prefect's timeout of the task may raise an exception anywhere in this thread."""
    task = TaskRunContext.get()
    timed = task is not None and task.task.timeout_seconds is not None
    return timed and threading.current_thread() is not threading.main_thread()


def _enclosing(task: TaskRunContext | None) -> list[TaskRunContext]:
    """Return the contexts of the tasks of the same flow run inside which a task was called.

    Prefect has no public access to them: a context knows the one before it only from how it is taken back.
    """
    found = list[TaskRunContext]()
    inner: Any = task
    while inner is not None:
        token: Any = getattr(inner, "_token", None)
        outer: Any = getattr(token, "old_value", None)
        if not isinstance(outer, TaskRunContext) or outer.task_run.flow_run_id != inner.task_run.flow_run_id:
            break
        if outer.task_run.id != inner.task_run.id:  # Prefect enters the context of a task more than once
            found.append(outer)
        inner = outer
    return found


def _times_out_at(task: TaskRunContext | None, flow: FlowRunContext | None) -> float | None:
    limits = [(task.start_time, task.task.timeout_seconds)] if task else []
    if flow is not None and flow.flow is not None:
        limits.append((flow.start_time, flow.flow.timeout_seconds))
    ends = [start.timestamp() + seconds for start, seconds in limits if seconds is not None]
    return time.monotonic() + min(ends) - time.time() if ends else None


def _cancel_event(flow: FlowRunContext | None, task_run_id: UUID | None) -> threading.Event | None:
    """Return the event that stops a submitted task. Prefect has no public access to it (issue #15873)."""
    events: Any = getattr(flow.task_runner, "_cancel_events", None) if flow else None
    event = events.get(task_run_id) if isinstance(events, dict) else None  # pyright: ignore
    return event if isinstance(event, threading.Event) else None


def interrupted_by_a_person() -> bool:
    """Return whether this process was interrupted from its terminal."""
    cause = _exception_of_flow()
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
