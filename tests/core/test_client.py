"""The client as an object: where its settings come from, how it is closed, and what it costs."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from noukai_core import AsyncNoukai, InvalidInputError, Noukai, NoukaiError
from tests.core.scripted_server import FLOW, KEY, ScriptedServer, state

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient


def test_key_and_address_come_from_the_environment(
    scripted: MakeClient, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing arguments are read from NOUKAI_API_KEY and NOUKAI_BASE_URL."""
    monkeypatch.setenv("NOUKAI_API_KEY", KEY)
    monkeypatch.setenv("NOUKAI_BASE_URL", "https://elsewhere.test/api/v9")
    scripted(api_key=None, base_url=None).flow(FLOW).job(message="hello")
    (sent,) = server.requests
    assert sent.headers["Authorization"] == f"Bearer {KEY}"
    assert str(sent.url).startswith("https://elsewhere.test/api/v9/seq/")


def test_an_argument_wins_over_the_environment(
    scripted: MakeClient, server: ScriptedServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given arguments override the environment."""
    monkeypatch.setenv("NOUKAI_API_KEY", KEY)
    monkeypatch.setenv("NOUKAI_BASE_URL", "https://elsewhere.test/api/v9")
    scripted().flow(FLOW).job(message="hello")
    assert server.requests[0].headers["Authorization"] == f"Bearer {key}"
    assert server.requests[0].url.host == "noukai.test"


@pytest.mark.parametrize(
    ("environment", "address"),
    [(None, "https://api.noukai.dev/api/v1/"), ("dev", "http://localhost:8080/api/v1/")],
)
def test_the_address_without_any_setting(
    scripted: MakeClient,
    server: ScriptedServer,
    environment: str | None,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a base URL, the client uses the service's; with NOUKAI_ENV=dev, a server on this machine."""
    if environment:
        monkeypatch.setenv("NOUKAI_ENV", environment)
    scripted(base_url=None).flow(FLOW).job(message="hello")
    assert str(server.requests[0].url).startswith(address)


@pytest.mark.parametrize(
    ("variable", "value"), [("NOUKAI_ENV", "dev"), ("NOUKAI_BASE_URL", "http://127.0.0.1:8090/api/v1")]
)
def test_a_production_key_and_a_variable(
    scripted: MakeClient, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A production key goes to the local server only if the caller says so, not because a variable does."""
    monkeypatch.setenv(variable, value)
    live, test = (f"nk_{kind}_12345678_abcdefghijklmnopqrstuvwxyz012345" for kind in ("live", "test"))
    with pytest.raises(InvalidInputError, match=f"nk_live_, but .*{variable}") as refused:
        scripted(api_key=live, base_url=None)
    assert live not in str(refused.value)
    scripted(api_key=test, base_url=None)
    scripted(api_key=live, base_url="http://127.0.0.1:8090/api/v1")


def test_an_address_without_encryption_is_refused(scripted: MakeClient, server: ScriptedServer) -> None:
    """No key is sent in the clear to another machine unless the user allows it; on this machine it may be."""
    with pytest.raises(InvalidInputError, match=r"http://noukai.test.*allow_insecure_http"):
        scripted(base_url="http://noukai.test/api/v1")
    scripted(base_url="http://noukai.test/api/v1", allow_insecure_http=True)
    scripted(base_url="http://localhost:8080/api/v1")
    scripted(base_url="http://127.0.0.1:8080/api/v1")


def test_a_client_is_a_context_manager_that_closes_twice(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """Leaving the block closes; closing again, and again, is fine."""
    with scripted() as client:
        client.flow(FLOW).job(message="hello")
    client.close()
    client.close()


@pytest.mark.parametrize("verb", ["job", "status", "wait", "cancel", "verify_key"])
def test_a_closed_client_says_that_it_is_closed(
    scripted: MakeClient, server: ScriptedServer, verb: str
) -> None:
    """Using a closed client raises an error that says so, with nothing sent."""
    client = scripted()
    flow, job = client.flow(FLOW), client.flow(FLOW).attach("job-1")
    client.close()
    acts = {"job": lambda: flow.job(message="hello"), "verify_key": client.verify_key}
    with pytest.raises(NoukaiError, match="closed"):
        acts.get(verb, getattr(job, verb, None))()
    assert server.requests == []


def test_a_handle_shows_what_it_is(scripted: MakeClient) -> None:
    """The repr of a flow and of a job names them."""
    flow = scripted().flow(FLOW)
    assert FLOW in repr(flow)
    assert "job-1" in repr(flow.attach("job-1"))


def test_threads_may_share_a_client(server: ScriptedServer, key: str) -> None:
    """Twenty threads submit and wait through one blocking client."""
    server.on("poll", state("completed", result="x"))
    with Noukai(key, base_url="https://noukai.test/api/v1", transport=server.transport) as client:

        def run(number: int) -> Any:
            return client.flow(FLOW).job(message=str(number)).wait(timeout_ms=20_000).output

        with ThreadPoolExecutor(20) as threads:
            assert list(threads.map(run, range(20))) == ["x"] * 20
    assert len({request.headers["X-Session-Id"] for request in server.made("submit")}) == 20


def test_submissions_of_threads_go_through_the_bound(key: str) -> None:
    """Threads have no more submissions open at a time than the client allows."""
    lock, full, now, most = threading.Lock(), threading.Event(), 0, 0

    def slowly(request: httpx.Request) -> httpx.Response:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if most == 2:
                full.set()
        assert full.wait(60)
        time.sleep(0.02)  # one submission more would show up now
        with lock:
            now -= 1
        return httpx.Response(202, json={"executionId": "job-1"})

    transport = httpx.MockTransport(slowly)
    base_url = "https://noukai.test/api/v1"
    with (
        Noukai(key, base_url=base_url, transport=transport, max_concurrent_submissions=2) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        list(threads.map(lambda number: client.flow(FLOW).job(message=str(number)), range(12)))
    assert most == 2


async def test_a_wait_can_be_cancelled(server: ScriptedServer, key: str) -> None:
    """Cancelling the waiting task ends the wait at once, leaves the job running and the client usable."""
    server.on("poll", state("running"))
    base_url = "https://noukai.test/api/v1"
    async with AsyncNoukai(key, base_url=base_url, transport=server.transport, poll_interval=600) as client:
        job = client.flow(FLOW).attach("job-1")
        waiting = asyncio.ensure_future(job.wait())
        while not server.made("poll"):
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await job.status()).state == "running"
    assert server.made("cancel") == []


def test_a_client_of_another_event_loop_says_so(server: ScriptedServer, key: str) -> None:
    """An async client that is used on a second loop is an error in words, not a hang."""
    server.on("poll", state("running"))
    client = AsyncNoukai(key, base_url="https://noukai.test/api/v1", transport=server.transport)

    async def poll() -> Any:
        return await client.flow(FLOW).attach("job-1").status()

    asyncio.run(poll())
    with pytest.raises(InvalidInputError, match="loop"):
        asyncio.run(poll())
    asyncio.run(client.aclose())
