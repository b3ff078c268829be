"""Threads of a simulated process, and their event loops: whatever they wait for, they wait in virtual time.

Each thread has a stack of its own, as a process has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Any

from tests.simulation.transports import Blocking, Killed, VirtualLoop


class Threads:
    """What stands for `threading` and `asyncio` in code that starts threads.

    Args:
        process: Returns the process whose code runs now.
    """

    def __init__(self, process: Callable[[], Blocking]) -> None:
        self._process = process
        # Nothing waits while it holds a lock, so no other thread finds it held.
        self.threading = SimpleNamespace(Thread=self._thread, RLock=nullcontext)
        self.future = lambda: _Future(process())
        self.asyncio = SimpleNamespace(
            **{
                **vars(asyncio),
                "run": self._run_loop,
                "run_coroutine_threadsafe": self._run_in_loop,
            }
        )

    def _thread(
        self, *, target: Callable[..., None], args: tuple[Any, ...] = (), name: str = "", daemon: bool = False
    ) -> _Thread:
        return _Thread(self._process(), lambda: target(*args))

    def _run_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        process = self._process()
        with asyncio.Runner(loop_factory=lambda: _Loop(process)) as runner:
            return runner.run(coroutine)

    def _run_in_loop(self, coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> _Called:
        return _Called(self._process(), asyncio.run_coroutine_threadsafe(coroutine, loop))


class _Thread:
    def __init__(self, process: Blocking, run: Callable[[], None]) -> None:
        self._process = process
        self._run_target = run
        self._ended = False

    def start(self) -> None:
        self._process.clock.after(0.0, self._begin)

    def join(self, timeout: float | None = None) -> None:
        self._process.wait_for(lambda: self._ended, timeout)

    def _begin(self) -> None:
        if self._process.alive:
            self._process.start(self._run)

    def _run(self) -> None:
        with suppress(Killed):
            self._run_target()
        self._ended = True


class _Future:
    def __init__(self, process: Blocking) -> None:
        self._process = process
        self._done = False
        self._result: Any = None
        self._error: BaseException | None = None

    def set_result(self, result: Any) -> None:
        self._done, self._result = True, result

    def set_exception(self, error: BaseException) -> None:
        self._done, self._error = True, error

    def done(self) -> bool:
        return self._done

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._process.wait_for(lambda: self._done, timeout)
        if not self._done:
            raise TimeoutError
        return self._error

    def result(self, timeout: float | None = None) -> Any:
        if (error := self.exception(timeout)) is not None:
            raise error
        return self._result


class _Called:
    """What another thread has asked a loop to run."""

    def __init__(self, process: Blocking, future: Future[Any]) -> None:
        self._process = process
        self._future = future

    def result(self, timeout: float | None = None) -> Any:
        self._process.wait_for(self._future.done, timeout)
        if not self._future.done():
            raise TimeoutError
        return self._future.result()

    def cancel(self) -> bool:
        return self._future.cancel()


class _Loop(VirtualLoop):
    """The loop of a thread, which dies with its process. Blocking functions run in threads of their own."""

    def __init__(self, process: Blocking) -> None:
        self._process = process
        super().__init__(process.clock, process.interleaving, lambda: process.alive)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        done = self.create_future()
        if not self._process.alive:
            done.cancel()
            return done

        def run() -> None:
            try:
                result = func(*args)
            except Killed:
                raise
            except BaseException as error:
                self._end(done, error, None)
            else:
                self._end(done, None, result)

        _Thread(self._process, run).start()
        return done

    def _end(self, done: asyncio.Future[Any], error: BaseException | None, result: Any) -> None:
        def end() -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)

        if not self.is_closed():
            self.call_soon(end)
