"""A SIGTERM or a timeout whose exception got lost."""

import asyncio
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from prefect.utilities.timeout import timeout

from noukai_prefect import _termination
from noukai_prefect._cancellation import StoppedInThread, run_until_stopped
from noukai_prefect._run_context import RunContext
from noukai_prefect._sync import run_blocking
from noukai_prefect._termination import termination_noted, was_terminated


class Stopped(BaseException):
    """What the handler raises, as Prefect's does."""


def _raise(number: int, frame: object) -> None:
    raise Stopped


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """A handler like Prefect's."""
    earlier = signal.signal(signal.SIGTERM, _raise)
    yield
    signal.signal(signal.SIGTERM, earlier)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def test_a_signal_in_a_callback_is_noted() -> None:
    """A SIGTERM whose exception the event loop only reports is noted all the same."""
    loop = asyncio.get_running_loop()
    reported = loop.create_future()
    loop.set_exception_handler(lambda _, context: reported.set_result(type(context["exception"])))
    with termination_noted():
        assert not was_terminated()
        loop.call_soon(_terminate)
        assert await reported is Stopped
        assert was_terminated()
    assert signal.set_wakeup_fd(-1) == -1


def test_a_timeout_that_strikes_in_a_callback() -> None:
    """A wait in the main thread ends although the event loop only reports the exception of its timeout."""
    lost: list[object] = []

    def parse_a_response() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(0.01)

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: lost.append(context.get("exception")))
        loop.call_soon(parse_a_response)
        run = RunContext(None, None, 1, time.monotonic() + 1, None)
        await run_until_stopped(asyncio.sleep(3600), run, "it waited")

    with pytest.raises(StoppedInThread), timeout(1):
        run_blocking(wait())
    assert len(lost) == 1


def test_a_wait_that_begins_after_the_timeout() -> None:
    """What a flow still does after its timeout has struck in the main thread is not stopped."""
    late = RunContext(None, None, 1, time.monotonic() - 3600, None, began_late=True)
    assert not late.stop_requested
    with ThreadPoolExecutor() as threads:
        assert threads.submit(lambda: late.stop_requested).result()


def test_other_signals_are_not_noted() -> None:
    """Only a SIGTERM counts, and one of an earlier block does not."""
    with termination_noted(), suppress(Stopped):
        _terminate()
    earlier = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with termination_noted(), termination_noted():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not was_terminated()
    finally:
        signal.signal(signal.SIGUSR1, earlier)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_signal_of_a_forked_child_is_not_noted() -> None:
    """What ends a child process, such as one of a pool, does not end its parent."""
    fork = multiprocessing.get_context("fork")
    started = fork.Event()

    def wait() -> None:
        started.set()
        signal.pause()

    with termination_noted():
        child = fork.Process(target=wait)
        child.start()
        started.wait()
        child.terminate()
        child.join()
        assert not was_terminated()


async def test_an_event_loop_that_handles_signals_keeps_them() -> None:
    """Where the program's own event loop handles signals, nothing is noted, and its handler is called."""
    loop = asyncio.get_running_loop()
    called = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, called.set)
    try:
        with termination_noted():
            os.kill(os.getpid(), signal.SIGUSR1)
            await called.wait()
            assert not was_terminated()
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


def test_a_thread_may_ask_while_the_main_thread_ends_its_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait in a thread goes on when the sockets are closed at the very moment at which it reads them."""
    with termination_noted():
        sockets = _termination._noted._sockets
        assert sockets is not None

        class Closing(tuple[socket.socket, socket.socket]):
            """Sockets that are closed as soon as one of them is taken."""

            def __getitem__(self, index: Any) -> Any:
                _termination._noted._close()
                return super().__getitem__(index)

        monkeypatch.setattr(_termination._noted, "_sockets", Closing(sockets))
        assert not was_terminated()
