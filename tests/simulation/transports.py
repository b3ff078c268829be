"""The simulated network for the real clients: their transports, for blocking and for async code."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable
from typing import Any

import httpx
from greenlet import getcurrent, greenlet

from noukai_core._api.parsing import HttpResponse
from noukai_core._http.messages import HttpRequest, ResponseReader
from tests.simulation.clock import Clock
from tests.simulation.interleaving import Interleaving, LiveProcess
from tests.simulation.network import NO_RESPONSE, NOT_SENT, End, Exchange, Network
from tests.simulation.pages import Response

BASE_URL = "https://noukai.test/api/v1"


class Killed(BaseException):
    """The process has died; nothing of it may run any more."""


class Blocking(LiveProcess):
    """A process whose code blocks: time passes while it waits.

    Args:
        number: Which of the schedule's processes it is.
        interleaving: Lets it run beside others.
        network: Carries its requests.
        clock: The time.
        wall_error: By how many seconds its wall clock is wrong.

    Attributes:
        alive: Whether it runs.
        on_wait: Is called before it waits for anything.
        on_signal: Handles a signal that has come, in the main thread; it may raise.
        signalled: Whether one has come.
    """

    def __init__(
        self,
        number: int,
        interleaving: Interleaving,
        network: Network,
        clock: Clock,
        wall_error: float,
    ) -> None:
        super().__init__(number, clock, wall_error)
        self.interleaving = interleaving
        self.network = network
        self.alive = True
        self.on_wait: Callable[[], None] = lambda: None
        self.on_signal: Callable[[], None] = lambda: None
        self.signalled = False
        self._main: greenlet | None = None

    def start_main(self, function: Callable[[], None]) -> None:
        """Run its code."""

        def run() -> None:
            self._main = getcurrent()
            function()

        self.start(run)

    def start(self, function: Callable[[], None]) -> None:
        """Run code of it in another thread."""
        self.interleaving.start(self, function)

    def wait_for(self, ready: Callable[[], bool], seconds: float | None) -> None:
        """Wait for what another thread does, for a while or for as long as it takes."""
        self._check()
        self._wait(ready, math.inf if seconds is None else self.clock.now + max(seconds, 0.0))

    def sleep(self, seconds: float) -> None:
        self._begin()
        self._wait(lambda: False, self.clock.now + max(seconds, 0.0))

    def thaw(self) -> None:
        """Let it stand still until it no longer has to."""
        self.interleaving.wait(lambda: False, self.frozen_until)

    def exchange(self, request: HttpRequest) -> End:
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
        main = getcurrent() is self._main
        while not ready():
            self.interleaving.wait(lambda: ready() or (main and self.signalled) or not self.alive, until)
            self._check()
            if not ready() and self.clock.now >= until:
                break
        self._check()

    def _check(self) -> None:
        if not self.alive:
            raise Killed
        if self.signalled and getcurrent() is self._main:
            self.signalled = False
            self.on_signal()


class BlockingTransport:
    """Carries the requests of a blocking client."""

    def __init__(self, process: Blocking) -> None:
        self._process = process

    def exchange(self, request: HttpRequest, most_bytes: int) -> HttpResponse:
        return as_received(self._process.exchange(request), request, most_bytes)

    def close(self) -> None:
        pass


class AsyncTransport:
    """Carries the requests of an async client.

    Args:
        number: The process.
        network: The network.
    """

    def __init__(self, number: int, network: Network) -> None:
        self._number = number
        self._network = network

    async def exchange(self, request: HttpRequest, most_bytes: int) -> HttpResponse:
        ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()

        def done(end: End) -> None:
            if not ended.done():
                ended.set_result(end)

        exchange = send(self._network, self._number, request, done)
        try:
            self._sent()
            return as_received(await ended, request, most_bytes)
        finally:
            self._network.abandon(exchange)

    def _sent(self) -> None:
        """Take note that a request is on its way."""

    async def aclose(self) -> None:
        pass


class ThreadTransport(AsyncTransport):
    """Carries the requests of an async client in a thread of a process.

    Args:
        process: The process.
    """

    def __init__(self, process: Blocking) -> None:
        super().__init__(process.number, process.network)
        self._process = process

    async def exchange(self, request: HttpRequest, most_bytes: int) -> HttpResponse:
        if not self._process.alive:
            raise asyncio.CancelledError
        return await super().exchange(request, most_bytes)

    def _sent(self) -> None:
        self._process.on_wait()
        if not self._process.alive:
            raise asyncio.CancelledError


def send(network: Network, process: int, request: HttpRequest, done: Callable[[End], None]) -> Exchange:
    """Send a request of a client."""
    path = request.url.partition("/api/v1/")[2]
    return network.send(process, request.method, path, request.headers, request.timeout, done)


def as_received(end: End, request: HttpRequest, most_bytes: int) -> HttpResponse:
    """Return or raise what a transport makes of the end of a request."""
    if isinstance(end, Response):
        headers = [(name.encode(), value.encode()) for name, value in end.headers.items()]
        reader = ResponseReader(end.status, headers, most_bytes, cut_at=request.cut_at)
        reader.take(end.body)
        return reader.response()
    if end == NOT_SENT:
        raise httpx.ConnectError("connection refused")
    if end == NO_RESPONSE:
        raise httpx.ReadError("connection reset")
    raise httpx.ReadTimeout("")


class RealConnection(BaseException):
    """The code wants a connection out of the simulated world: something of it is not simulated yet."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time: while it has nothing to do, the events of the schedule come.

    Args:
        clock: The time.
        interleaving: Lets the others run.
        alive: Tells whether its process runs. When it does no more, `Killed` ends what the loop runs, and no
            time passes for what is cleaned up then.
    """

    def __init__(
        self, clock: Clock, interleaving: Interleaving, alive: Callable[[], bool] = lambda: True
    ) -> None:
        self._simulated = clock
        self.alive = alive
        self.ahead = 0.0
        super().__init__(_Selector(clock, interleaving, self))

    def has_work(self) -> bool:
        """Whether a callback is due."""
        return bool(self._ready)  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._simulated.now + self.ahead

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        done = self.create_future()
        done.set_result(func(*args))
        return done

    async def getaddrinfo(self, *address: Any, **_: Any) -> Any:
        raise RealConnection(address)

    async def create_connection(self, *_: Any, host: Any = None, **__: Any) -> Any:
        raise RealConnection(host)


class _Selector(selectors.DefaultSelector):
    """Where a loop sleeps until its next timer; nothing real ever wakes it."""

    def __init__(self, clock: Clock, interleaving: Interleaving, loop: VirtualLoop) -> None:
        super().__init__()
        self._clock = clock
        self._interleaving = interleaving
        self._loop = loop
        self._killed = False

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout == 0:
            return []
        loop, now = self._loop, self._clock.now
        if self._killed and timeout is not None:
            loop.ahead += timeout
            return []
        # However short the sleep is: a loop goes to sleep again until its timer has come.
        ends = math.inf if timeout is None else max(now + timeout, math.nextafter(now, math.inf))
        if loop.alive():
            self._interleaving.wait(lambda: loop.has_work() or not loop.alive(), ends)
        if not loop.alive():
            self._killed = True
            raise Killed
        return []
