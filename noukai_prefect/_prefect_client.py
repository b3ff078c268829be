"""The client of Prefect's server, even for code that outlives its flow run by a moment."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from prefect.client.orchestration import PrefectClient, get_client


@asynccontextmanager
async def prefect_client() -> AsyncGenerator[PrefectClient, None]:
    """Open the client that a flow run and its tasks share or, once Prefect has closed that, another one.

    When a signal strikes in one of several gathered tasks, the flow run ends with it and closes the client.
    Only then are the others interrupted, which still have to ask the server what becomes of their jobs.
    """
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(get_client())
        except RuntimeError:
            client = await stack.enter_async_context(get_client(httpx_settings={}))  # shared by nobody
        yield client
