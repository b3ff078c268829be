"""Changes of connections that triggers wait with: each reaches them within a minute."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from noukai_core.time_limit import time_limit

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_airflow.hooks.noukai import NoukaiHook

log = logging.getLogger(__name__)

CHECK_SECONDS = 50.0
"""How often a connection is read while triggers wait with it, once for all of them."""


class _Watch:
    """Reads one connection from time to time, and interrupts those that wait with its old content."""

    def __init__(self) -> None:
        self.waiting: dict[asyncio.Timeout, ConnectionSettings] = {}
        self.task: asyncio.Task[None] | None = None

    async def run(self, hook: NoukaiHook) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                current = await hook.aget_settings(rejected=next(iter(self.waiting.values())))
            except Exception as error:  # a poll that the server rejects tells more than this
                log.debug("The Airflow connection %s could not be read: %s", hook.noukai_conn_id, error)
                continue
            now = asyncio.get_running_loop().time()
            for scope, settings in self.waiting.items():
                if settings != current and not scope.expired():
                    scope.reschedule(now)


_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Watch]] = WeakKeyDictionary()


@asynccontextmanager
async def until_changed(
    hook: NoukaiHook, settings: ConnectionSettings
) -> AsyncGenerator[asyncio.Timeout, None]:
    """Leave the block with a `TimeoutError` once the connection differs from the settings.

    Args:
        hook: Reads the connection.
        settings: What the caller uses of it.

    Yields:
        The scope: it has expired if the connection was changed.
    """
    watches = _watches.setdefault(asyncio.get_running_loop(), {})
    watch = watches.setdefault(hook.noukai_conn_id, _Watch())
    async with time_limit(None) as scope:
        watch.waiting[scope] = settings
        if watch.task is None:
            watch.task = asyncio.create_task(watch.run(hook))
        try:
            yield scope
        finally:
            del watch.waiting[scope]
            if not watch.waiting:
                watch.task.cancel()
                watches.pop(hook.noukai_conn_id, None)
