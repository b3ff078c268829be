"""The hook: from an Airflow connection to a Noukai client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseHook

from noukai_airflow._client_cache import new_client, shared_async_client, shared_client
from noukai_airflow._connection import ConnectionSettings, explained, parse_extra
from noukai_airflow.exceptions import NoukaiException, NoukaiTransientException, airflow_errors
from noukai_airflow.provider_info import connection_type
from noukai_core import ApiKey
from noukai_core.time_limit import time_limit

if TYPE_CHECKING:
    from noukai_core import AsyncNoukai, KeyInfo, Noukai

# How long an event loop caches a connection, in seconds. In a triggerer, each read of a connection is a round
# trip to its supervisor, which takes 9 ms of the supervisor's time, and 1,000 triggers may start at once.
_CACHE_SECONDS = 60.0

# A read that Airflow never responds to must not be what every later trigger waits for. On a busy machine, an
# ordinary read took seconds.
_READ_SECONDS = 120.0


@dataclass(frozen=True)
class _PendingRead:
    """A read of a connection, and until when its result is valid."""

    task: asyncio.Task[ConnectionSettings]
    expires_at: float

    def is_stale(self, rejected: ConnectionSettings | None) -> bool:
        if not self.task.done():
            return False
        return (
            self.expires_at < time.monotonic()
            or self.task.exception() is not None
            or self.task.result() == rejected
        )


_reads: dict[asyncio.AbstractEventLoop, dict[str, _PendingRead]] = {}


def _reads_on_this_loop() -> dict[str, _PendingRead]:
    """Return the reads of this event loop, and drop those of loops that are closed.

    Weak keys would not help: the task of a read refers to its loop.
    """
    loop = asyncio.get_running_loop()
    if loop not in _reads:
        for closed in [other for other in list(_reads) if other.is_closed()]:
            _reads.pop(closed, None)
    return _reads.setdefault(loop, {})


class NoukaiHook(BaseHook):
    """Provides Noukai clients for an Airflow connection of the type `noukai`.

    Everything in this process, or on this event loop, that uses the same connection shares a client.

    Args:
        noukai_conn_id: The connection.
    """

    conn_name_attr: ClassVar[str] = "noukai_conn_id"
    default_conn_name: ClassVar[str] = "noukai_default"
    conn_type: ClassVar[str] = "noukai"
    hook_name: ClassVar[str] = "Noukai"

    def __init__(self, noukai_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.noukai_conn_id = noukai_conn_id

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form's additional fields, for Airflow before 3.2, which does not read them elsewhere."""
        wtforms: Any = import_module("wtforms")  # Airflow installs it, or replaces it by a stub
        # The stub has no field for decimals.
        kinds = {
            "string": wtforms.StringField,
            "integer": wtforms.IntegerField,
            "number": wtforms.IntegerField,
            "boolean": wtforms.BooleanField,
        }
        fields = connection_type()["conn-fields"]
        return {
            name: kinds[field["schema"]["type"][0]](field["label"], description=field["description"])
            for name, field in fields.items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the labels of the form's standard fields, for Airflow before 3.2."""
        behaviour = connection_type()["ui-field-behaviour"]
        return {name.replace("-", "_"): value for name, value in behaviour.items()}

    @cached_property
    def settings(self) -> ConnectionSettings:
        """The content of the connection, which is read once.

        Raises:
            NoukaiPermanentException: The connection is malformed.
        """
        with explained(self.noukai_conn_id):
            return self._settings_of(self.get_connection(self.noukai_conn_id))

    def get_conn(self) -> Noukai:
        """Return the client, which every user of the connection in this process shares.

        It need not be closed. If it is, the next call makes another one.

        Raises:
            NoukaiPermanentException: The connection is malformed.
        """
        with airflow_errors():
            return shared_client(self.settings)

    @asynccontextmanager
    async def async_client(self) -> AsyncGenerator[AsyncNoukai, None]:
        """Lend the client of this event loop. It is closed after its last use.

        Raises:
            NoukaiPermanentException: The connection is malformed.
        """
        settings = await self.aget_settings()
        async with shared_async_client(settings) as client:
            yield client

    async def aget_settings(self, *, rejected: ConnectionSettings | None = None) -> ConnectionSettings:
        """Return the content of the connection, without blocking the event loop.

        It is cached for a minute, and concurrent callers share one read.

        Args:
            rejected: Settings that the server has rejected. If these are cached, the connection is read
                again.

        Raises:
            NoukaiPermanentException: The connection is malformed.
            NoukaiTransientException: Airflow did not respond within two minutes. A later call reads again.
        """
        reads = _reads_on_this_loop()
        found = reads.get(self.noukai_conn_id)
        if found is None or found.is_stale(rejected):
            reading = asyncio.create_task(self._read_connection())
            found = reads[self.noukai_conn_id] = _PendingRead(reading, time.monotonic() + _CACHE_SECONDS)
        try:
            # The cancellation of one trigger must not cancel the read for the others.
            async with time_limit(_READ_SECONDS):
                return await asyncio.shield(found.task)
        except Exception as error:
            if reads.get(self.noukai_conn_id) is found:
                del reads[self.noukai_conn_id]
            if isinstance(error, TimeoutError) and not found.task.done():
                raise NoukaiTransientException(
                    f"The Airflow connection {self.noukai_conn_id!r} could not be read: no response from "
                    f"Airflow within {_READ_SECONDS:g} s"
                ) from None
            raise

    async def _read_connection(self) -> ConnectionSettings:
        from airflow.providers.common.compat.connection import get_async_connection

        with explained(self.noukai_conn_id):
            return self._settings_of(await get_async_connection(self.noukai_conn_id, hook=self))

    def _settings_of(self, connection: Any) -> ConnectionSettings:
        # Airflow's `extra_dejson` would hide that an extra is malformed, and mask each of its values again,
        # after `get_connection`. None of them is secret: the key is the password.
        password, extra = ApiKey(connection.password or ""), connection.extra
        host, port = connection.host, connection.port
        login, schema = connection.login, connection.schema
        del connection  # a traceback with local variables would show its password
        return ConnectionSettings.of(
            self.noukai_conn_id,
            password=password,
            host=host,
            port=port,
            login=login,
            schema=schema,
            extra=parse_extra(self.noukai_conn_id, extra),
        )

    def test_connection(self) -> tuple[bool, str]:
        """Verify the key with the server, for the button in Airflow's list of connections. This is free."""
        try:
            # A client of its own: Airflow tests under a random connection id, which none is shared for.
            with airflow_errors(), new_client(self.settings) as client:
                return True, _describe(client.verify_key())
        except NoukaiException as error:
            return False, str(error)


def _describe(key: KeyInfo) -> str:
    where = "/".join(part for part in (key.org, key.project) if part)
    environment = f" ({key.environment})" if key.environment else ""
    return f"The key works{' for ' + where if where else ''}{environment}."
