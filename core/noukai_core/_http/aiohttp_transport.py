"""Requests over aiohttp.

A look over TLS costs the processor two fifths over aiohttp of what it costs over httpx's own async transport
(``benchmarks/transports.py``), and a triggerer may make a hundred looks a second. Faults are given httpx's
names, as they decide whether a submission may be sent again; ``httpx-aiohttp``, which joins the two as well,
reports a connection that breaks in the middle of a request as one that was never made.
"""

from __future__ import annotations

import io
import math
import ssl

import aiohttp
import httpx
from yarl import URL

from noukai_core._api.parsing import HttpResponse
from noukai_core._http.messages import HttpRequest, ResponseReader

_LONGEST_HEADER = 64 * 1024


class AiohttpTransport:
    """Carries requests over one aiohttp session.

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

    async def exchange(self, request: HttpRequest, most_bytes: int) -> HttpResponse:
        """Send a request, and return its answer; faults come as httpx's. The caller limits the time."""
        try:
            return await self._exchange(request, most_bytes)
        except _FAULTS as fault:
            raise _as_httpx(fault) from fault

    async def _exchange(self, request: HttpRequest, most_bytes: int) -> HttpResponse:
        if self._session is None:
            self._session = self._new_session()
        response = await self._session.request(
            request.method,
            URL(request.url, encoded=True),
            headers=request.headers,
            # Of bytes that are many, aiohttp warns that they block the loop.
            data=io.BytesIO(request.body) if request.body else None,
            allow_redirects=False,
            # How long the whole answer may take is the caller's own timer; one more for each read would cost
            # as much as reading does.
            timeout=aiohttp.ClientTimeout(connect=request.timeout, ceil_threshold=math.inf),
        )
        try:
            incoming = ResponseReader(response.status, response.raw_headers, most_bytes)
            async for chunk in response.content.iter_any():
                incoming.take(chunk)
            return incoming.response()
        finally:
            # One whose answer was read to its end has gone back to the others already.
            response.close()

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
