"""Requests over aiohttp, behind httpx's interface.

A look over TLS costs the processor a third over aiohttp of what it costs over httpx's own async transport
(``benchmarks/transports.py``), and a triggerer may make a hundred looks a second. ``httpx-aiohttp``, which
joins the two as well, reports a connection that breaks in the middle of a request as one that was never made:
a submission would be sent twice.
"""

from __future__ import annotations

import io
import math
import ssl
from collections.abc import AsyncIterator
from functools import lru_cache

import aiohttp
import httpx
from yarl import URL

from .inputs import ApiKey

_LONGEST_HEADER = 64 * 1024


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Carries requests over one aiohttp session, and reports faults as httpx's own transport does.

    Args:
        tls: How servers are trusted.
        most_connections: How many are open at the same time.
        idle_expiry: How long one is kept that is not used, in seconds.
    """

    def __init__(self, tls: ssl.SSLContext, most_connections: int, idle_expiry: float) -> None:
        self._tls = tls
        self._most_connections = most_connections
        self._idle_expiry = idle_expiry
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the answer as soon as its headers are there."""
        if self._session is None:
            self._session = self._new_session()
        content = request.content
        try:
            response = await self._session.request(
                request.method,
                _address(str(request.url)),
                headers=_headers(request),
                # Of bytes that are many, aiohttp warns that they block the loop.
                data=io.BytesIO(content) if content else None,
                allow_redirects=False,
                # How long the whole answer may take is the caller's own timer; one more for each read would
                # cost as much as reading does.
                timeout=aiohttp.ClientTimeout(
                    connect=request.extensions["timeout"]["connect"], ceil_threshold=math.inf
                ),
            )
        except _FAULTS as fault:
            raise _as_httpx(fault) from fault
        return httpx.Response(
            response.status, headers=list(response.raw_headers), stream=_AiohttpBody(response)
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=self._tls, limit=self._most_connections, keepalive_timeout=self._idle_expiry
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )


@lru_cache(maxsize=4096)
def _address(url: str) -> URL:
    """Keep an address with all that aiohttp works out of it; a job has many looks."""
    return URL(url, encoded=True)


def _headers(request: httpx.Request) -> dict[str, str]:
    """Return the headers in a form that shows no key in a traceback with local variables."""
    return {name.decode("ascii"): ApiKey(value.decode("ascii")) for name, value in request.headers.raw}


class _AiohttpBody(httpx.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._response.content.iter_any():
                yield piece
        except _FAULTS as fault:
            raise _as_httpx(fault) from fault

    async def aclose(self) -> None:
        # One whose answer was read to its end has gone back to the others already.
        self._response.close()


_FAULTS = (aiohttp.ClientError, TimeoutError, OSError)


def _as_httpx(fault: Exception) -> httpx.TransportError:
    """Return httpx's name for a fault. Which one it is tells whether the request was sent."""
    said = str(fault)
    match fault:
        case aiohttp.ConnectionTimeoutError():
            return httpx.ConnectTimeout(said)
        case aiohttp.ClientConnectorError():
            return httpx.ConnectError(said)
        case TimeoutError():
            return httpx.ReadTimeout(said)
        case OSError() | aiohttp.ClientPayloadError():
            return httpx.ReadError(said)
        case _:
            return httpx.RemoteProtocolError(said)
