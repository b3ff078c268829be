"""The simulated network for the real clients: as transports of httpx, for blocking and for async code."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable
from typing import Any

import httpx

from tests.simulation.clock import Clock
from tests.simulation.network import NO_RESPONSE, NOT_SENT, End, Exchange, Network
from tests.simulation.pages import Response

BASE_URL = "https://noukai.test/api/v1"

_PREFIX = "/api/v1/"


class Killed(BaseException):
    """The process has died; nothing of it may run any more."""


class Blocking:
    """A process whose code blocks: time passes while it waits.

    Attributes:
        alive: Whether it runs.
        on_wait: Is called before it waits for anything.
        on_signal: Handles a signal that has come; it may raise.
        signalled: Whether one has come.
        until: When what runs now is abandoned, with `Killed`.
    """

    def __init__(self, number: int, clock: Clock, network: Network) -> None:
        self.number = number
        self.clock = clock
        self.network = network
        self.alive = True
        self.on_wait: Callable[[], None] = lambda: None
        self.on_signal: Callable[[], None] = lambda: None
        self.signalled = False
        self.until = math.inf

    def sleep(self, seconds: float) -> None:
        self._begin()
        self._wait(lambda: False, self.clock.now + max(seconds, 0.0))

    def exchange(self, request: httpx.Request) -> End:
        """Send a request, and wait for what comes of it."""
        self._begin()
        ends: list[End] = []
        exchange = send(self.network, self.number, request, ends.append)
        try:
            self._wait(lambda: bool(ends), math.inf)
        finally:
            self.network.abandon(exchange)
        return ends[0]

    def _begin(self) -> None:
        self._check()
        self.on_wait()
        self._check()

    def _wait(self, ready: Callable[[], bool], until: float) -> None:
        limit = min(until, self.until)
        while not ready():
            next_at = self.clock.next_at()
            if next_at is None or next_at > limit:
                assert limit < math.inf, "what the process waits for never comes"
                self.clock.now = max(limit, self.clock.now)
                if until > self.until:
                    raise Killed
                break
            self.clock.step()
            self._check()
        self._check()

    def _check(self) -> None:
        if not self.alive:
            raise Killed
        if self.signalled:
            self.signalled = False
            self.on_signal()


class BlockingTransport(httpx.BaseTransport):
    """Carries the requests of a blocking client."""

    def __init__(self, process: Blocking) -> None:
        self._process = process

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return as_httpx(self._process.exchange(request), request)


class AsyncTransport(httpx.AsyncBaseTransport):
    """Carries the requests of an async client.

    Args:
        number: The process.
        network: The network.
        before: Is called before each request; may raise.
    """

    def __init__(self, number: int, network: Network, before: Callable[[], None]) -> None:
        self._number = number
        self._network = network
        self._before = before

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._before()
        ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()

        def done(end: End) -> None:
            if not ended.done():
                ended.set_result(end)

        exchange = send(self._network, self._number, request, done)
        try:
            return as_httpx(await ended, request)
        finally:
            self._network.abandon(exchange)


def send(network: Network, process: int, request: httpx.Request, done: Callable[[End], None]) -> Exchange:
    """Send a request of httpx."""
    path = request.url.raw_path.decode().removeprefix(_PREFIX)
    timeout = request.extensions["timeout"]["read"]
    return network.send(process, request.method, path, dict(request.headers), timeout, done)


def as_httpx(end: End, request: httpx.Request) -> httpx.Response:
    """Return or raise what httpx makes of the end of a request."""
    if isinstance(end, Response):
        return httpx.Response(end.status, headers=dict(end.headers), content=end.body)
    if end == NOT_SENT:
        raise httpx.ConnectError("connection refused", request=request)
    if end == NO_RESPONSE:
        raise httpx.ReadError("connection reset", request=request)
    raise httpx.ReadTimeout("", request=request)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time: while it has nothing to do, the events of the schedule come."""

    def __init__(self, clock: Clock) -> None:
        self._simulated = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self._simulated.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        done = self.create_future()
        done.set_result(func(*args))
        return done


class _Selector(selectors.DefaultSelector):
    """Where a loop sleeps until its next timer; nothing real ever wakes it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout == 0:
            return []
        clock = self._clock
        ends = math.inf if timeout is None else clock.now + max(timeout, 0.0)
        next_at = clock.next_at()
        if next_at is not None and next_at <= ends:
            clock.step()
        else:
            assert ends < math.inf, "the loop waits for what never comes"
            # However short the sleep is: a loop goes to sleep again until its timer has come.
            clock.now = max(ends, math.nextafter(clock.now, math.inf))
        return []
