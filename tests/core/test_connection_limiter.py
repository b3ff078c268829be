"""How many requests an async client has open at the same time."""

from __future__ import annotations

import asyncio

import pytest

from noukai_core._http import connection_limiter
from noukai_core._http.connection_limiter import CALLS_AT_FIRST, ConnectionLimiter


@pytest.fixture(autouse=True)
def short_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests open one more connection soon."""
    monkeypatch.setattr(connection_limiter, "LONGEST_QUEUE", 0.05)


async def test_a_request_that_has_waited_opens_one_more() -> None:
    """Slow responses hold up no other request: one that has waited gets a connection, up to the most."""
    limiter = ConnectionLimiter(CALLS_AT_FIRST + 1)
    assert all([await limiter.enter(1) for _ in range(CALLS_AT_FIRST)])
    assert await limiter.enter(1)
    assert not await limiter.enter(0.1)


async def test_a_slot_that_is_released_is_taken() -> None:
    """A request that waits gets the connection of one that ends, and opens none."""
    limiter = ConnectionLimiter(CALLS_AT_FIRST)
    assert all([await limiter.enter(1) for _ in range(CALLS_AT_FIRST)])
    waiting = asyncio.create_task(limiter.enter(300))
    await asyncio.sleep(0.1)
    limiter.leave()
    assert await waiting
