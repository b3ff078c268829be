"""Connections over a pause, through a proxy, and to a server that hangs up."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from typing import TYPE_CHECKING, Any

import httpcore
import httpx
import pytest

from noukai_core import AsyncNoukai, ClientClosedError, ConnectionPoolTimeoutError, Noukai, NoukaiError
from noukai_core._api import endpoints
from noukai_core._engine import schedule
from noukai_core._http import connection_limiter, transports
from noukai_core._http.connection_limiter import CALLS_AT_FIRST
from noukai_core._http.transports import MAX_CONCURRENT_CALLS
from noukai_core._validation import FlowPath
from tests.core.scripted_server import FLOW

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient


class Counter(ThreadingHTTPServer):
    """A server that keeps idle connections and counts those that were opened."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Running)
        self.opened = 0
        self.hung_up = threading.Event()

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.hung_up.set()

    def get_request(self) -> Any:
        self.opened += 1
        return super().get_request()


class Running(BaseHTTPRequestHandler):
    """Responds to every request with a running job."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b'{"executionId": "job-1", "status": "running"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *parts: object) -> None:
        """Never responds."""


@pytest.fixture
def counter() -> Iterator[Counter]:
    """A counting server on a free port."""
    with Counter() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_an_idle_connection_outlives_the_longest_pause(
    make_client: MakeClient, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two polls with the longest pause between them use one connection."""
    client = make_client(base_url=f"http://127.0.0.1:{counter.server_address[1]}/api/v1")
    job = client.flow(FLOW).attach("job-1")
    job.status()
    clock, pause = time.monotonic, schedule.LONGEST_PAUSE * (1 + schedule.JITTER)
    # A timer of the future would keep the local Noukai of other tests from stopping.
    others = set(threading.enumerate()) - {threading.current_thread()}

    def later() -> float:
        return clock() + (0 if threading.current_thread() in others else pause)

    monkeypatch.setattr(time, "monotonic", later)
    job.status()
    client.close()
    assert counter.opened == 1


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(
    make_client: MakeClient, counter: Counter
) -> None:
    """A poll over a connection that died in the pause is repeated over a new one, unnoticed."""
    client = make_client(base_url=f"http://127.0.0.1:{counter.server_address[1]}/api/v1")
    job = client.flow(FLOW).attach("job-1")
    Running.timeout = 0.05
    try:
        job.status()
        assert counter.hung_up.wait(10)
        assert job.status().state == "running"
    finally:
        Running.timeout = None
    client.close()
    assert counter.opened == 2


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of this machine is in the way."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_proxy_of_the_environment_is_used(
    make_client: MakeClient, counter: Counter, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """A company's proxy is honoured as every other program honours it."""
    monkeypatch.setenv("http_proxy", f"{scheme}127.0.0.1:{counter.server_address[1]}")
    client = make_client(base_url="http://noukai.invalid/api/v1", allow_insecure_http=True)
    assert client.flow(FLOW).attach("job-1").status().state == "running"
    assert counter.opened == 1


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
def test_nothing_for_this_machine_goes_through_a_proxy(
    make_client: MakeClient, counter: Counter, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A key for a server on this machine does not leave it, whatever proxy the environment names."""
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    client = make_client(base_url=f"http://127.0.0.1:{counter.server_address[1]}/api/v1")
    assert client.flow(FLOW).attach("job-1").status().state == "running"


@pytest.mark.usefixtures("no_proxies")
def test_a_server_that_needs_no_proxy_is_reached_directly(
    make_client: MakeClient, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_PROXY names the servers that are reached without it."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    client = make_client(base_url=f"http://127.0.0.1:{counter.server_address[1]}/api/v1")
    assert client.flow(FLOW).attach("job-1").status().state == "running"
    assert counter.opened == 1


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    ("base_url", "host"),
    [("https://straße.test/api", "xn--strae-oqa.test"), ("https://bücher.test", "xn--bcher-kva.test")],
)
async def test_a_name_beyond_ascii_is_resolved_as_httpx_does(
    key: str, monkeypatch: pytest.MonkeyPatch, base_url: str, host: str
) -> None:
    """The async client sends its key to the same server as the blocking one."""
    resolved: list[str] = []

    async def resolve(name: str, *_: Any, **__: Any) -> Any:
        resolved.append(name)
        raise OSError("nobody of that name")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    async with AsyncNoukai(key, base_url=base_url, retry_timeout=0) as client:
        with pytest.raises(NoukaiError):
            await client.flow(FLOW).job("hello")
    assert set(resolved) == {host}


class Crowded(httpx.AsyncBaseTransport):
    """Holds every request until it is released, and counts those that it holds at the same time."""

    def __init__(self) -> None:
        self.held = 0
        self.most = 0
        self.timeouts: list[float] = []
        self.response = asyncio.Event()
        self._came = asyncio.Condition()

    async def holds(self, number: int) -> None:
        """Wait until this many requests are held at the same time."""
        async with self._came:
            await self._came.wait_for(lambda: self.held >= number)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async with self._came:
            self.held += 1
            self.timeouts.append(request.extensions["timeout"]["read"])
            self._came.notify_all()
        self.most = max(self.most, self.held)
        await asyncio.sleep(0)  # lets the other requests arrive before this one gets its response
        await self.response.wait()
        self.held -= 1
        return httpx.Response(200, json={"executionId": "job-1", "status": "running"})


async def test_a_client_that_is_closed_while_a_crowd_waits(key: str) -> None:
    """A request that waits for a connection when the client is closed ends with an error that says so."""
    crowded = Crowded()
    client = AsyncNoukai(key, base_url="https://noukai.test/api/v1", transport=crowded)
    job = client.flow(FLOW).attach("job-1")
    polls = [asyncio.ensure_future(job.status()) for _ in range(MAX_CONCURRENT_CALLS + 8)]
    await crowded.holds(MAX_CONCURRENT_CALLS)
    await client.aclose()
    crowded.response.set()
    outcomes = await asyncio.gather(*polls, return_exceptions=True)
    late = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert len(late) == 8
    assert all(isinstance(error, ClientClosedError) and "closed" in str(error) for error in late)


def test_a_client_that_is_closed_while_a_connection_is_opened(
    key: str, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that was not open yet when another thread closed the client is closed after all."""
    opened = list[Any]()
    connect = transports._Sockets.connect_tcp  # pyright: ignore[reportPrivateUsage]

    def slowly(sockets: Any, *arguments: Any, **options: Any) -> Any:
        stream = connect(sockets, *arguments, **options)
        opened.append(stream.get_extra_info("socket"))
        client.close()
        return stream

    monkeypatch.setattr(transports._Sockets, "connect_tcp", slowly)  # pyright: ignore[reportPrivateUsage]
    client = Noukai(key, base_url=f"http://127.0.0.1:{counter.server_port}/api/v1")
    client.flow(FLOW).attach("job-1").status()
    assert [socket.fileno() for socket in opened] == [-1]


def test_a_stream_is_read_as_httpcores_is() -> None:
    """The arguments have the names by which httpcore passes them when it speaks to a SOCKS proxy."""
    theirs, ours = httpcore.NetworkStream, transports._Stream  # pyright: ignore[reportPrivateUsage]
    for method in ("read", "write"):
        assert [*signature(getattr(ours, method)).parameters] == [
            *signature(getattr(theirs, method)).parameters
        ]


async def test_a_crowd_polls_over_few_connections(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand polls at once share a few connections as long as none of them waits too long."""
    monkeypatch.setattr(connection_limiter, "LONGEST_QUEUE", 60.0)  # however busy this machine is
    crowded = Crowded()
    crowded.response.set()
    async with AsyncNoukai(key, base_url="https://noukai.test/api/v1", transport=crowded) as client:
        job = client.flow(FLOW).attach("job-1")
        polls = [asyncio.ensure_future(job.status()) for _ in range(1000)]
        assert {status.state for status in await asyncio.gather(*polls)} == {"running"}
    assert crowded.most == CALLS_AT_FIRST < MAX_CONCURRENT_CALLS


async def test_a_slow_server_gets_more_connections(key: str) -> None:
    """If polls have to wait for responses, more connections are used, up to the maximum."""
    crowded = Crowded()
    async with AsyncNoukai(key, base_url="https://noukai.test/api/v1", transport=crowded) as client:
        job = client.flow(FLOW).attach("job-1")
        polls = [asyncio.ensure_future(job.status()) for _ in range(1000)]
        await crowded.holds(MAX_CONCURRENT_CALLS)
        crowded.response.set()
        assert {status.state for status in await asyncio.gather(*polls)} == {"running"}
    assert crowded.most == MAX_CONCURRENT_CALLS


async def test_a_call_without_a_connection_says_that_nothing_was_sent(key: str) -> None:
    """If every connection stays busy, the error says so, and does not blame the server."""
    crowded = Crowded()
    async with AsyncNoukai(key, base_url="https://noukai.test/api/v1", transport=crowded) as client:
        connection = client._runner._connection  # pyright: ignore[reportPrivateUsage] - a poll is repeated
        poll = endpoints.status(FlowPath(*FLOW.split("/")), "job-1")
        held = [asyncio.ensure_future(connection.send(poll)) for _ in range(MAX_CONCURRENT_CALLS)]
        await crowded.holds(MAX_CONCURRENT_CALLS)
        not_sent = await connection.send(poll, 0.1)
        crowded.response.set()
        await asyncio.gather(*held)
    assert isinstance(not_sent, ConnectionPoolTimeoutError)
    assert not_sent.never_processed
    assert "job-1" in str(not_sent)
    assert f"none of this client's {MAX_CONCURRENT_CALLS} connections became free within 0.05 s" in str(
        not_sent
    )


async def test_the_wait_for_a_connection_counts(key: str) -> None:
    """A request that has waited for a connection has only the rest of its time left."""
    crowded = Crowded()
    async with AsyncNoukai(key, base_url="https://noukai.test/api/v1", transport=crowded) as client:
        connection = client._runner._connection  # pyright: ignore[reportPrivateUsage] - a poll is repeated
        poll = endpoints.status(FlowPath(*FLOW.split("/")), "job-1")
        held = [asyncio.ensure_future(connection.send(poll)) for _ in range(MAX_CONCURRENT_CALLS)]
        await crowded.holds(MAX_CONCURRENT_CALLS)
        waiting = asyncio.ensure_future(connection.send(poll, 300.0))
        await asyncio.sleep(0.2)  # seconds of those 300
        crowded.response.set()
        await asyncio.gather(*held, waiting)
    assert crowded.timeouts[-1] < 299.9


async def test_submissions_have_connections_of_their_own(key: str) -> None:
    """A client that may have 24 submissions open has them, regardless of its polls."""
    crowded = Crowded()
    client = AsyncNoukai(
        key, base_url="https://noukai.test/api/v1", max_concurrent_submissions=24, transport=crowded
    )
    flow = client.flow(FLOW)
    polls = [asyncio.ensure_future(flow.attach("job-1").status()) for _ in range(100)]
    jobs = [asyncio.ensure_future(flow.job("hello")) for _ in range(100)]
    await crowded.holds(MAX_CONCURRENT_CALLS + 24)
    crowded.response.set()
    await asyncio.gather(*polls, *jobs)
    await client.aclose()
    assert crowded.most == MAX_CONCURRENT_CALLS + 24
