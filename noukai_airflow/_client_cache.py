"""Shared clients, so that their open connections are reused."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from noukai_airflow._stats import report_to_airflow

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core import AsyncNoukai, Noukai


@dataclass
class _Lease:
    client: asyncio.Task[AsyncNoukai]
    users: int = 0


_lock = threading.Lock()
_clients: dict[ConnectionSettings, Noukai] = {}
_leases: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[ConnectionSettings, _Lease]] = WeakKeyDictionary()

# A forked child must not use the sockets of its parent.
os.register_at_fork(after_in_child=_clients.clear)


def shared_client(settings: ConnectionSettings) -> Noukai:
    """Return this process's client for a connection. It stays open until the process ends."""
    report_to_airflow()
    with _lock:
        client = _clients.get(settings)
        if client is None or client.is_closed:  # a `with` block of somebody else's has closed it
            client = _clients[settings] = new_client(settings)
        return client


def new_client(settings: ConnectionSettings) -> Noukai:
    """Make a client that its caller closes."""
    from noukai_core import Noukai

    with _naming_connection(settings):
        return Noukai(**settings.client_arguments())


@asynccontextmanager
async def shared_async_client(settings: ConnectionSettings) -> AsyncGenerator[AsyncNoukai, None]:
    """Lend this event loop's client for a connection. It is closed after its last use."""
    leases = _leases.setdefault(asyncio.get_running_loop(), {})
    lease = leases.get(settings)
    if lease is None:
        lease = leases[settings] = _Lease(asyncio.create_task(new_async_client(settings)))
    lease.users += 1
    try:
        yield await asyncio.shield(lease.client)
    finally:
        lease.users -= 1
        if lease.users == 0:
            del leases[settings]
            await _close(lease)


async def new_async_client(settings: ConnectionSettings) -> AsyncNoukai:
    """Make a client without blocking the event loop: a process's first one reads all certificates."""
    from noukai_core import AsyncNoukai

    report_to_airflow()
    with _naming_connection(settings):
        return await asyncio.to_thread(AsyncNoukai, **settings.client_arguments())


@contextmanager
def _naming_connection(settings: ConnectionSettings) -> Generator[None, None, None]:
    """Say which connection it is that a client cannot be made for."""
    from noukai_airflow._connection import in_connection_terms
    from noukai_airflow.exceptions import NoukaiPermanentException
    from noukai_core import InvalidInputError

    try:
        yield
    except InvalidInputError as error:
        raise NoukaiPermanentException(
            f"The Airflow connection {settings.conn_id!r} is malformed: {in_connection_terms(str(error))}"
        ) from error


async def _close(lease: _Lease) -> None:
    try:
        client = await lease.client
    except Exception:  # making it failed, and its users have seen the error
        return
    await client.aclose()
