"""A time limit for a block of async code, also while a task that was cancelled still tidies up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


@asynccontextmanager
async def time_limit(seconds: float | None) -> AsyncGenerator[asyncio.Timeout, None]:
    """Limit the time that a block takes, as `asyncio.timeout` does.

    In a task that was cancelled before, Python 3.11.0 to 3.11.2 raise `CancelledError` in the place of
    `TimeoutError` (gh-102780). Debian 12 has 3.11.2.

    Args:
        seconds: The limit; `None` for none yet.

    Raises:
        TimeoutError: The block has taken longer.
    """
    task = asyncio.current_task()
    cancelling = 0 if task is None else task.cancelling()
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            yield scope
    except asyncio.CancelledError as error:
        if scope.expired() and task is not None and task.cancelling() <= cancelling:
            raise TimeoutError from error
        raise
