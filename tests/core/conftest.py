"""Both clients behind one interface, against a scripted server or the emulator.

`make_client` is the driver: every test that uses it, or a fixture made of it, runs once with `Noukai`
and once with `AsyncNoukai`, whose coroutines run on the fixture's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from noukai_core import AsyncNoukai, Noukai
from noukai_core._engine import schedule
from tests.core.drivers import Blocking
from tests.core.raw_service import RawService
from tests.core.scripted_server import ScriptedServer

if TYPE_CHECKING:
    import httpx

    from noukai_core.emulator import Emulator
    from tests.core.scripted_server import HttpResponse

MakeClient = Callable[..., Any]


@pytest.fixture
def server() -> ScriptedServer:
    """A server that accepts every submission as job-1; the rest is for the test to script."""
    return ScriptedServer()


@pytest.fixture(params=["sync", "async"])
def driver(request: pytest.FixtureRequest) -> str:
    """Which of the two clients this run of the test uses."""
    return str(request.param)


class Clock:
    """The clock of waits. It stands still until a response comes that moves it."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        """Return the seconds, as `time.monotonic` does."""
        return self._now

    def after(self, seconds: float, response: HttpResponse) -> HttpResponse:
        """Return a response that takes so long on this clock, each time."""

        def respond(request: httpx.Request) -> httpx.Response:
            self._now += seconds
            return response(request)

        return respond


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the waits for single jobs: a deadline comes when the script says so, and not sooner.

    The last poll, which comes after it, may take as long as the machine does.
    """
    clock = Clock()
    monkeypatch.setattr("noukai_core._handles.time", clock)
    monkeypatch.setattr(schedule, "MIN_POLL_TIMEOUT", 60.0)
    return clock


@pytest.fixture
def key() -> str:
    """A key for this test alone, because all clients of one key share a rate limit."""
    return f"nk_test_12345678_{uuid4().hex}"


@pytest.fixture
def make_client(driver: str, key: str) -> Iterator[MakeClient]:
    """Makes clients of either kind, all with the blocking interface, and closes them."""
    made: list[Any] = []
    with asyncio.Runner() as runner:

        def make(**options: Any) -> Any:
            options.setdefault("api_key", key)
            options.setdefault("base_url", "https://noukai.test/api/v1")
            client: Any = Noukai(**options) if driver == "sync" else Blocking(runner, AsyncNoukai(**options))
            made.append(client)
            return client

        yield make
        for client in made:
            client.close()


@pytest.fixture
def scripted(make_client: MakeClient, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> MakeClient:
    """Makes a client of the scripted server, with pauses so short that no test waits for a real one."""
    monkeypatch.setattr(schedule, "SHORTEST_PAUSE", 0.005)
    monkeypatch.setattr(schedule, "SHORT_RETRY_WINDOW", 0.15)

    def make(**options: Any) -> Any:
        return make_client(**{"transport": server.transport, "poll_interval": 0.005, **options})

    return make


@pytest.fixture
def patient(scripted: MakeClient, monkeypatch: pytest.MonkeyPatch) -> MakeClient:
    """As `scripted`, for faults that pass: a core that is busy with something else is no fault."""
    monkeypatch.setattr(schedule, "SHORT_RETRY_WINDOW", 30.0)
    return scripted


@pytest.fixture
def local(make_client: MakeClient, emulator: Emulator) -> MakeClient:
    """Makes a client of the emulator, over real HTTP, that polls often."""

    def make(**options: Any) -> Any:
        return make_client(**{"base_url": emulator.base_url, "poll_interval": 0.05, **options})

    return make


@pytest.fixture
def service() -> Iterator[RawService]:
    """A service on a real socket that accepts every submission as job-1 and knows of no session."""
    with RawService() as service:
        yield service


@pytest.fixture
def client(make_client: MakeClient, service: RawService, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of that service with short pauses and a short recovery window."""
    monkeypatch.setattr(schedule, "SHORTEST_PAUSE", 0.01)
    return make_client(base_url=service.base_url, recovery_timeout=0.3, poll_interval=0.01)


@pytest.fixture
def ticks_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ticks of this process lie at whole tenths of a second."""
    monkeypatch.setattr(schedule, "_FIRST_TICK", 0.0)
