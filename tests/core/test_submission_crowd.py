"""Many submissions at a time, and submissions that are broken off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from noukai_core import AsyncNoukai
from tests.core.scripted_server import FLOW, KEY, ScriptedServer

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient


async def test_a_crowd_of_submissions_goes_through_a_bound() -> None:
    """No more submissions of one client are open at a time than it allows."""
    now = most = 0
    full = asyncio.Event()

    async def slowly(request: httpx.Request) -> httpx.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if most == 3:
            full.set()
        await full.wait()
        await asyncio.sleep(0.01)  # one submission more would show up now
        now -= 1
        return httpx.Response(202, json={"executionId": f"job-{request.headers['X-Session-Id']}"})

    transport = httpx.MockTransport(slowly)
    async with AsyncNoukai(
        api_key=KEY, base_url="https://noukai.test/api/v1", transport=transport, max_concurrent_submissions=3
    ) as client:
        flow = client.flow(FLOW)
        jobs = await asyncio.gather(*(flow.job(message=str(number)) for number in range(20)))
    assert len({job.id for job in jobs}) == 20
    assert most == 3


async def test_a_cancelled_submission_gives_its_place_back() -> None:
    """A task that is cancelled while it submits does not make the bound smaller for the others."""
    stuck = asyncio.Event()

    async def first_hangs(request: httpx.Request) -> httpx.Response:
        if not stuck.is_set():
            stuck.set()
            await asyncio.sleep(60)
        return httpx.Response(202, json={"executionId": "job-1"})

    transport = httpx.MockTransport(first_hangs)
    async with AsyncNoukai(
        api_key=KEY, base_url="https://noukai.test/api/v1", transport=transport, max_concurrent_submissions=1
    ) as client:
        hanging = asyncio.ensure_future(client.flow(FLOW).job(message="one"))
        await stuck.wait()
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        async with asyncio.timeout(10):
            assert (await client.flow(FLOW).job(message="two")).id == "job-1"


def test_an_interrupted_submission_is_not_swallowed(scripted: MakeClient, server: ScriptedServer) -> None:
    """Ctrl-C while a submission is on its way goes through."""

    def interrupted(request: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    act: Callable[[], Any] = lambda: scripted().flow(FLOW).job(message="hello")  # noqa: E731
    server.on("submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        act()
    assert server.made("session") == []
