"""A client of either kind, with the blocking interface."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from noukai_core import AsyncNoukai, Noukai
from tests.core.drivers import Blocking

DRIVERS = ("blocking", "async")


@contextmanager
def client_of(
    driver: str, loop: Callable[[], asyncio.AbstractEventLoop] | None = None, **options: Any
) -> Iterator[Any]:
    """Open a client; the async one gets a separate event loop."""
    if driver == "blocking":
        with Noukai(**options) as client:
            yield client
        return
    with asyncio.Runner(loop_factory=loop) as runner, Blocking(runner, AsyncNoukai(**options)) as client:
        yield client
