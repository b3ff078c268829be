"""A pytest plugin that searches for tests that need a quick machine, or the tests before them.

    python -m pytest tests/core -p devtools.latency

The tests run in a random order. Threads, servers and transports of their process pause at random, as they do
on a machine that is busy with something else. `LATENCY_SEED` repeats the order; threads draw their pauses as
the system schedules them.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest
import uvicorn

_SHARE = 0.4
_LONGEST = 0.4

# The processes that share the tests inherit it, and put them in the same order.
_seed = os.environ.setdefault("LATENCY_SEED", str(random.randrange(10**6)))  # noqa: S311
_random = random.Random()  # noqa: S311
_patches = pytest.MonkeyPatch()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seed."""
    terminalreporter.write_line(f"LATENCY_SEED={_seed}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Shuffle the tests."""
    random.Random(_seed).shuffle(items)  # noqa: S311


def pytest_configure() -> None:
    """Let everything pause."""
    for owner, name in (
        (threading.Thread, "run"),
        (BaseHTTPRequestHandler, "handle_one_request"),
        (httpx.MockTransport, "handle_request"),
    ):
        _patches.setattr(owner, name, _late(getattr(owner, name)))
    respond = httpx.MockTransport.handle_async_request
    _patches.setattr(httpx.MockTransport, "handle_async_request", _async_late(respond))
    configure = uvicorn.Config.__init__

    def configure_late(config: uvicorn.Config, app: Any, *arguments: Any, **options: Any) -> None:
        async def respond_late(scope: Any, receive: Any, send: Any) -> None:
            await app(scope, receive, _async_late(send))

        configure(config, respond_late, *arguments, **options)

    _patches.setattr(uvicorn.Config, "__init__", configure_late)


def pytest_unconfigure() -> None:
    """Let nothing pause."""
    _patches.undo()


def _late(function: Any) -> Any:
    def call(*arguments: Any) -> Any:
        time.sleep(_pause())
        returned = function(*arguments)
        time.sleep(_pause())
        return returned

    return call


def _async_late(function: Any) -> Any:
    async def call(*arguments: Any) -> Any:
        await asyncio.sleep(_pause())
        returned = await function(*arguments)
        await asyncio.sleep(_pause())
        return returned

    return call


def _pause() -> float:
    return _random.uniform(0, _LONGEST) if _random.random() < _SHARE else 0.0
