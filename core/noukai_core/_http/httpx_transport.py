"""Requests over httpx's transports: of a blocking client, of an async one behind a proxy, or the user's.

The transports are used directly. An `httpx.Client` would add redirects, cookies and a log line per request,
none of which is wanted here: a job may be polled a thousand times.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import httpx

from noukai_core._api.parsing import HttpResponse
from noukai_core._http.messages import HttpRequest, ResponseReader


class HttpxTransport:
    """Sends requests over a blocking transport of httpx."""

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport
        self._closed = False

    def exchange(self, request: HttpRequest, most_bytes: int) -> HttpResponse:
        """Send a request, and return its response. Errors are httpx's."""
        ends = time.monotonic() + request.timeout
        response = self.open(request)
        try:
            return read_response(response, most_bytes, request.cut_at, ends)
        finally:
            if self._closed and (connection := _connection_of(response)) is not None:
                connection.close()

    def open(self, request: HttpRequest) -> httpx.Response:
        """Send a request, and return its response, whose body is still to be read. Errors are httpx's."""
        return self._transport.handle_request(_request(request))

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        self._transport.close()


class AsyncHttpxTransport:
    """Sends requests over an async transport of httpx."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        self._closed = False

    async def exchange(self, request: HttpRequest, most_bytes: int) -> HttpResponse:
        """Send a request, and return its response. Errors are httpx's. The caller limits the time."""
        response = await self.open(request)
        try:
            return await aread_response(response, most_bytes, request.cut_at)
        finally:
            if self._closed and (connection := _connection_of(response)) is not None:
                await connection.aclose()

    async def open(self, request: HttpRequest) -> httpx.Response:
        """Send a request, and return its response, whose body is still to be read. Errors are httpx's."""
        return await self._transport.handle_async_request(_request(request))

    async def aclose(self) -> None:
        """Close the connections."""
        self._closed = True
        await self._transport.aclose()


def _connection_of(response: httpx.Response) -> Any:
    """Return the connection of a response: httpcore forgets one that is opened while its pool is closed."""
    return response.extensions.get("network_stream")


def read_response(response: httpx.Response, most_bytes: int, cut_at: int | None, ends: float) -> HttpResponse:
    """Read a response to its end, until a moment on the monotonic clock, and close it."""
    try:
        reader = _reader(response, most_bytes, cut_at)
        for chunk in response.iter_bytes() if reader.unpacked else response.iter_raw():
            if not reader.take(chunk):
                break
            if time.monotonic() > ends:
                raise httpx.ReadTimeout("the response did not end in time")
        return reader.response()
    finally:
        response.close()


async def aread_response(response: httpx.Response, most_bytes: int, cut_at: int | None) -> HttpResponse:
    """Read a response to its end, and close it. The caller limits the time."""
    try:
        reader = _reader(response, most_bytes, cut_at)
        async for chunk in response.aiter_bytes() if reader.unpacked else response.aiter_raw():
            if not reader.take(chunk):
                break
        return reader.response()
    finally:
        await response.aclose()


def _request(request: HttpRequest) -> httpx.Request:
    return httpx.Request(
        request.method,
        _address(request.url),
        headers=request.headers,
        content=request.body,
        extensions={"timeout": httpx.Timeout(request.timeout).as_dict()},
    )


@lru_cache(maxsize=1024)
def _address(url: str) -> httpx.URL:
    """Parse an address. httpx spends a tenth of a poll on it, and a job has many polls."""
    return httpx.URL(url)


def _reader(response: httpx.Response, most_bytes: int, cut_at: int | None) -> ResponseReader:
    # A body that a transport has already read is also decompressed.
    read = response.is_stream_consumed
    return ResponseReader(
        response.status_code, response.headers.raw, most_bytes, cut_at=cut_at, unpacked=read
    )
