"""Requests over aiohttp.

Over TLS, a poll with aiohttp uses two fifths of the processor time of one with httpx's async transport
(`benchmarks/transports.py`), and a triggerer may make a hundred polls per second. Errors are translated to
httpx's, because their type decides whether a submission may be sent again. `httpx-aiohttp`, which also joins
the two, reports a connection that breaks during a request as one that was never made.
"""

from __future__ import annotations

import asyncio
import io
import math
import ssl
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from noukai_core._api.parsing import HttpResponse
from noukai_core._http.messages import HttpRequest, ResponseReader

_LONGEST_HEADER = 64 * 1024
_MOST_RESPONSES = 20
_PARSED_AT_ONCE = 16 * 1024


class AiohttpTransport:
    """Carries requests over one aiohttp session.

    Args:
        tls: The TLS context.
        most_connections: How many connections may be open at the same time.
        idle_expiry: How long an idle connection is kept, in seconds.
    """

    def __init__(self, tls: ssl.SSLContext, most_connections: int, idle_expiry: float) -> None:
        self._tls = tls
        self._most_connections = most_connections
        self._idle_expiry = idle_expiry
        self._session: aiohttp.ClientSession | None = None

    async def exchange(self, request: HttpRequest, most_bytes: int) -> HttpResponse:
        """Send a request, and return its response. Errors are httpx's. The caller limits the time."""
        try:
            return await self._exchange(request, most_bytes)
        except _FAULTS as fault:
            raise _as_httpx(fault) from fault

    async def open(self, request: HttpRequest) -> httpx.Response:
        """Send a request, and return its response, whose body is still to be read. Errors are httpx's."""
        try:
            response = await self._send(request)
        except _FAULTS as fault:
            raise _as_httpx(fault) from fault
        return httpx.Response(response.status, headers=response.raw_headers, stream=_Body(response))

    async def _send(self, request: HttpRequest) -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = self._new_session()
        return await self._session.request(
            request.method,
            URL(request.url, encoded=True),
            headers=request.headers,
            # aiohttp warns that large bytes block the loop.
            data=io.BytesIO(request.body) if request.body else None,
            allow_redirects=False,
            # The caller has a timer for the whole response; one more for each read would cost as much as the
            # read itself.
            timeout=aiohttp.ClientTimeout(connect=request.timeout, ceil_threshold=math.inf),
        )

    async def _exchange(self, request: HttpRequest, most_bytes: int) -> HttpResponse:
        response = await self._send(request)
        try:
            reader = ResponseReader(response.status, response.raw_headers, most_bytes, cut_at=request.cut_at)
            async for chunk in response.content.iter_any():
                if not reader.take(chunk):
                    break
            return reader.response()
        finally:
            # A connection whose response was read to its end has already returned to the pool.
            response.close()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            ssl=self._tls, limit=self._most_connections, keepalive_timeout=self._idle_expiry
        )
        # aiohttp has no argument for the protocol of a connection.
        factory: Any = partial(_CountingHandler, loop=asyncio.get_running_loop())
        connector._factory = factory  # pyright: ignore[reportPrivateUsage]
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )


class _CountingHandler(ResponseHandler):
    """A connection that closes when a server sends many responses to one request, or to none.

    aiohttp skips interim responses, such as `100 Continue`, and queues what arrives on an idle connection.
    It parses at once what has arrived: ten thousand responses block the loop for a tenth of a second.
    """

    _responses = 0

    def set_response_params(self, **options: Any) -> None:
        """Prepare for the response to the next request."""
        self._responses = 0
        super().set_response_params(**options)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take the head of a response, unless it is one too many."""
        self._responses += 1
        if self._responses <= _MOST_RESPONSES:
            super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, in parts, until it is too many responses."""
        for begin in range(0, max(len(data), 1), _PARSED_AT_ONCE):  # aiohttp also passes none, to resume
            if self._responses <= _MOST_RESPONSES:
                super().data_received(data[begin : begin + _PARSED_AT_ONCE])
        if self._responses > _MOST_RESPONSES and self.transport is not None:
            reason = f"more than {_MOST_RESPONSES} responses to one request"
            self.set_exception(HttpProcessingError(message=reason))
            self.transport.close()


class _Body(httpx.AsyncByteStream):
    """The body of a response in the form of httpx, with its errors."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except _FAULTS as fault:
            raise _as_httpx(fault) from fault

    async def aclose(self) -> None:
        self._response.close()


_FAULTS = (aiohttp.ClientError, TimeoutError, OSError)


def _as_httpx(fault: Exception) -> httpx.TransportError:
    """Return httpx's error for a fault. Its type says whether the request was sent."""
    message = str(fault)
    match fault:
        case aiohttp.ConnectionTimeoutError():
            return httpx.ConnectTimeout(message)
        case aiohttp.ClientConnectorError():
            return httpx.ConnectError(message)
        case TimeoutError():
            return httpx.ReadTimeout(message)
        case OSError() | aiohttp.ClientPayloadError():
            return httpx.ReadError(message)
        case _:
            return httpx.RemoteProtocolError(message)
