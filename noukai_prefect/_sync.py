"""Run a coroutine from blocking code, so that sync and async share one implementation.

If this thread has no event loop, the call creates one. If one is already running (a sync task that an async
flow calls directly), or if Prefect's timeout could raise an exception inside the loop, the coroutine runs on
an event loop in another thread, and this thread waits.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

from noukai_prefect._run_context import INTERRUPT, RunContext, timed_in_thread

T = TypeVar("T")

_WAIT_SECONDS = 0.2
_CLEANUP_SECONDS = 15.0


_named = set[str]()
"""The twins that this process has named to async code."""


def run_blocking(coroutine: Coroutine[Any, Any, T], async_twin: str | None = None) -> T:
    """Run a coroutine to its end. An interruption cancels it, and waits for its cleanup.

    Args:
        coroutine: What to run.
        async_twin: What async code should await instead, which the log then says, once per process.
    """
    in_loop = _in_loop()
    if in_loop and async_twin is not None and async_twin not in _named:
        _named.add(async_twin)
        logger = RunContext.current().logger()
        logger.warning("Noukai call: blocks the event loop (in async code, use await %s)", async_twin)
    if in_loop or timed_in_thread():
        return _InThread(coroutine).result()
    return asyncio.run(coroutine)


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _InThread(Generic[T]):
    """A coroutine on an event loop in another thread, with the context variables of this one."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._outcome: T | None = None
        self._error: BaseException | None = None
        self._interrupted = False
        self._interrupt = threading.Event()
        self._starting = threading.Lock()
        # Not `Thread.join`: Python 3.11 considers a thread ended when a signal interrupts its `join`.
        self._ended = threading.Event()
        context = contextvars.copy_context()
        context.run(INTERRUPT.set, self._interrupt)
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="noukai-wait", daemon=True
        )

    def result(self) -> T:
        try:
            self._thread.start()
            while not self._ended.wait(_WAIT_SECONDS):
                pass
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):  # which the coroutine sees only as a cancellation
                self._interrupt.set()
            with self._starting:
                self._interrupted = True
            if self._loop is not None and self._task is not None:
                with suppress(RuntimeError):  # the loop has just ended
                    self._loop.call_soon_threadsafe(self._task.cancel)
                self._ended.wait(_CLEANUP_SECONDS)
            raise
        if self._error is not None:
            raise self._error
        return cast("T", self._outcome)

    def _run(self) -> None:
        async def main() -> Any:
            with self._starting:
                if self._interrupted:
                    return None
                self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            return await self._coroutine

        try:
            self._outcome = asyncio.run(main())
        except BaseException as error:
            self._error = error
        finally:
            self._coroutine.close()
            self._ended.set()
