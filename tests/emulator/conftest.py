"""The emulator twice: in this process, and behind a socket. Both with a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from noukai_core.emulator import Emulator
from tests.emulator.driver import BEGIN, Clock, Driver

HEADERS = {"Authorization": "Bearer nk_test_12345678_contract"}


@pytest.fixture(scope="session")
def listening() -> Iterator[tuple[Emulator, Clock]]:
    """One emulator behind a socket for the whole suite."""
    clock = Clock()
    with Emulator(clock=clock) as emulator:
        yield emulator, clock


@pytest.fixture
async def over_socket(listening: tuple[Emulator, Clock]) -> AsyncIterator[Driver]:
    """The emulator over real HTTP."""
    emulator, clock = listening
    clock.now = BEGIN
    emulator.control.reset()
    async with httpx.AsyncClient(
        base_url=emulator.base_url, headers=HEADERS, trust_env=False, timeout=30
    ) as client:
        yield Driver(client, clock)


@pytest.fixture
async def in_process() -> AsyncIterator[Driver]:
    """The emulator without a server: what users may do with `Emulator().app`."""
    clock = Clock()
    transport = httpx.ASGITransport(Emulator(clock=clock).app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://emulator/api/v1", headers=HEADERS
    ) as client:
        yield Driver(client, clock)


@pytest.fixture(params=["in_process", "over_socket"])
def noukai(request: pytest.FixtureRequest) -> Driver:
    """The emulator, once in each of its two forms."""
    driver: Driver = request.getfixturevalue(request.param)
    return driver
