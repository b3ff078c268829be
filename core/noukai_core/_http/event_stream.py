"""A stream of server-sent events as it is received: one open connection, and bounded in every way.

httpx-sse decodes the events. It reads responses of httpx, so those of aiohttp are given that form.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
from httpx_sse import EventSource, ServerSentEvent

from noukai_core._api.events import ServerEvent
from noukai_core._api.parsing import HttpResponse
from noukai_core._http.messages import TooLargeError

MAX_EVENT_BYTES = 256 * 1024
"""The largest event that is read. The events of steps are small, but the output of a step is one, too."""

SILENCE_SECONDS = 60.0
"""Seconds without an event after which a stream is opened again: a lost connection may just be silent.

A blocking client gives them to the whole connection.
"""

_EVENT_STREAM = "text/event-stream"


class EventBound:
    """Passes the bytes of a stream on, except what an event has beyond its limit.

    The ends of lines are always passed on. A large event then ends where it should, is no longer valid JSON,
    and is dropped by its reader.

    Args:
        most_of_event: How many bytes of one event are passed on.
        most: How many bytes are taken altogether.
    """

    def __init__(self, most_of_event: int, most: int) -> None:
        self._most_of_event = most_of_event
        self._left = most
        self._size = 0
        self._in_line = False
        self._after_return = False

    def take(self, chunk: bytes) -> bytes:
        """Return what is passed on of the next chunk.

        Raises:
            TooLargeError: The stream is longer than allowed.
        """
        self._left -= len(chunk)
        if self._left < 0:
            raise TooLargeError(HttpResponse(200, {}, b""))
        return b"".join(map(self._take_line, chunk.splitlines(keepends=True)))

    def _take_line(self, line: bytes) -> bytes:
        text = line.rstrip(b"\r\n")
        end = line[len(text) :]
        if end == b"\n" and not text and self._after_return:  # the second half of an end that was split
            self._after_return = False
            return end
        self._after_return = end == b"\r"
        if end and not text and not self._in_line:
            self._size = 0
            return end
        kept = text[: max(0, self._most_of_event - self._size)]
        self._size += len(text)
        self._in_line = not end
        return kept + end


class EventStream:
    """An open stream of a blocking client."""

    def __init__(self, response: httpx.Response, bound: EventBound) -> None:
        self._response = response
        self._events = EventSource(_response_of(_Bounded(response, bound))).iter_sse()

    def next(self) -> ServerEvent | None:
        """Return the next event, or `None` at the end. Errors are httpx's."""
        return _event(next(self._events, None))

    def close(self) -> None:
        """Close the connection."""
        self._response.close()


class AsyncEventStream:
    """An open stream of an async client."""

    def __init__(self, response: httpx.Response, bound: EventBound) -> None:
        self._response = response
        self._events = EventSource(_response_of(_AsyncBounded(response, bound))).aiter_sse()

    async def next(self) -> ServerEvent | None:
        """Return the next event, or `None` at the end. Errors are httpx's."""
        return _event(await anext(self._events, None))

    async def aclose(self) -> None:
        """Close the connection."""
        await self._events.aclose()
        await self._response.aclose()


def is_event_stream(response: httpx.Response) -> bool:
    """Tell whether a response is a stream of events. A compressed one has no limits, and is not read."""
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    return response.status_code == 200 and content_type == _EVENT_STREAM and encoding in ("", "identity")


class _Bounded(httpx.SyncByteStream):
    def __init__(self, response: httpx.Response, bound: EventBound) -> None:
        self._response = response
        self._bound = bound

    def __iter__(self) -> Iterator[bytes]:
        response = self._response
        for chunk in response.iter_bytes() if response.is_stream_consumed else response.iter_raw():
            yield self._bound.take(chunk)


class _AsyncBounded(httpx.AsyncByteStream):
    def __init__(self, response: httpx.Response, bound: EventBound) -> None:
        self._response = response
        self._bound = bound

    async def __aiter__(self) -> AsyncIterator[bytes]:
        response = self._response
        async for chunk in response.aiter_bytes() if response.is_stream_consumed else response.aiter_raw():
            yield self._bound.take(chunk)


def _response_of(stream: httpx.SyncByteStream | httpx.AsyncByteStream) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Type": _EVENT_STREAM}, stream=stream)


def _event(event: ServerSentEvent | None) -> ServerEvent | None:
    return None if event is None else ServerEvent(event.event, event.data, event.id)
