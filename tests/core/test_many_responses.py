"""A server that sends many responses to one request, or some to none, over a socket."""

from __future__ import annotations

import asyncio
import itertools
import threading

import httpx
import pytest

from noukai_core import AsyncNoukai, JobState, TransientError
from noukai_core._engine import schedule
from noukai_core._http import transports
from noukai_core._http.httpx_transport import AsyncHttpxTransport
from noukai_core._options import ClientOptions
from tests.core.scripted_server import FLOW
from tests.fuzz.raw_server import Chunks, RawServer, ServerAction

KEY = "nk_test_12345678_abcdefghijklmnopqrstuvwxyz012345"
INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"
RUNNING = b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"status":"running"}'
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.fixture(autouse=True)
def _no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "SHORT_RETRY_WINDOW", 0.0)


async def test_a_few_interim_responses() -> None:
    """Interim responses before the final one are skipped, as HTTP asks."""
    with RawServer(lambda _: [INTERIM * 5 + RUNNING]) as server:
        async with AsyncNoukai(KEY, base_url=server.base_url) as client:
            assert (await client.flow(FLOW).attach("job-1").status()).state == JobState.RUNNING


@pytest.mark.parametrize("number", [100, 80_000])
async def test_many_interim_responses(number: int) -> None:
    """Beyond a few interim responses, the connection is closed, and the error says why."""
    with RawServer(lambda _: [INTERIM * number + RUNNING]) as server:
        async with AsyncNoukai(KEY, base_url=server.base_url) as client:
            with pytest.raises(TransientError, match="more than 20 responses to one request"):
                await client.flow(FLOW).attach("job-1").status()


async def test_responses_to_no_request() -> None:
    """A server that keeps sending responses after the one that was wanted loses its connection."""
    closed = threading.Event()

    def respond(_: bytes) -> Chunks:
        try:
            yield RUNNING
            yield from itertools.cycle([ServerAction.PAUSE, NO_CONTENT * 30])
        finally:
            closed.set()

    with RawServer(respond) as server:
        async with AsyncNoukai(KEY, base_url=server.base_url) as client:
            assert (await client.flow(FLOW).attach("job-1").status()).state == JobState.RUNNING
            assert await asyncio.to_thread(closed.wait, 60)


async def test_little_is_read_at_once_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a flood that comes through a proxy, the event loop parses 16 KiB before it goes on."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    settings = ClientOptions.of(api_key=KEY, base_url="http://noukai.test/api/v1", allow_insecure_http=True)
    transport = transports.async_transport(settings, None)
    assert isinstance(transport, AsyncHttpxTransport)
    backend = transport._transport._pool._network_backend
    with RawServer(lambda _: [INTERIM * 80_000]) as server:
        url = httpx.URL(server.base_url)
        stream = await backend.connect_tcp(url.host, url.port)
        await stream.write(b"GET / HTTP/1.1\r\n\r\n", 60)
        sizes = [len(await stream.read(64 * 1024, 60)) for _ in range(20)]
        await stream.aclose()
    await transport.aclose()
    assert max(sizes) <= 16 * 1024
