"""The client of Prefect's server."""

from __future__ import annotations

import asyncio

import pytest
from prefect.context import AsyncClientContext

from noukai_prefect._prefect_client import prefect_client


@pytest.mark.usefixtures("prefect_server")
async def test_a_task_that_outlives_its_flow_run() -> None:
    """What is interrupted only after Prefect has closed the client of its flow run reaches the server."""
    ended = asyncio.Event()

    async def reach() -> Exception | None:
        await ended.wait()
        async with prefect_client() as client:
            return await client.api_healthcheck()

    async with AsyncClientContext() as shared:
        beside = asyncio.create_task(reach())
        async with prefect_client() as client:
            assert client is shared.client
    ended.set()
    assert await beside is None
