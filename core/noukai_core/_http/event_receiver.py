"""How a call becomes a stream of events: one stream at a time, whose errors are returned as values."""

from __future__ import annotations

from typing import Any

from noukai_core._api import endpoints
from noukai_core._api.endpoints import Call
from noukai_core._api.events import ServerEvent
from noukai_core._http.connection import AsyncConnection, Connection
from noukai_core._http.event_stream import AsyncEventStream, EventStream
from noukai_core.errors import APIError


class EventReceiver:
    """Receives the events of a blocking client.

    Args:
        connection: What the stream is opened with.
        key: The key, which no error shows.
    """

    def __init__(self, connection: Connection, key: str) -> None:
        self._connection = connection
        self._key = key
        self._call: Call[Any] | None = None
        self._stream: EventStream | None = None

    def next(self, call: Call[Any]) -> ServerEvent | APIError | None:
        """Return the next event of a call's stream, `None` at its end, or the error that ended it."""
        if call is not self._call:
            self.close()
            opened = self._connection.open(call)
            if not isinstance(opened, EventStream):
                error: APIError = endpoints.outcome(call, opened, self._key)
                return error
            self._call, self._stream = call, opened
        event = None if self._stream is None else self._connection.receive(call, self._stream)
        if not isinstance(event, ServerEvent):
            self.close()
        return event

    def close(self) -> None:
        """Close the stream that is open."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None


class AsyncEventReceiver:
    """Receives the events of an async client; see `EventReceiver`."""

    def __init__(self, connection: AsyncConnection, key: str) -> None:
        self._connection = connection
        self._key = key
        self._call: Call[Any] | None = None
        self._stream: AsyncEventStream | None = None

    async def next(self, call: Call[Any]) -> ServerEvent | APIError | None:
        """Return the next event of a call's stream, `None` at its end, or the error that ended it."""
        if call is not self._call:
            await self.aclose()
            opened = await self._connection.open(call)
            if not isinstance(opened, AsyncEventStream):
                error: APIError = endpoints.outcome(call, opened, self._key)
                return error
            self._call, self._stream = call, opened
        event = None if self._stream is None else await self._connection.receive(call, self._stream)
        if not isinstance(event, ServerEvent):
            await self.aclose()
        return event

    async def aclose(self) -> None:
        """Close the stream that is open."""
        if self._stream is not None:
            await self._stream.aclose()
        self._stream = None
