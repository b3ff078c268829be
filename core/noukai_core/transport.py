"""What carries the requests: httpx's own transport for the blocking client, aiohttp for the async one.

A look over TLS costs the processor a third over aiohttp of what it costs over httpx's own async transport
(``benchmarks/transports.py``), and a triggerer may make a hundred looks a second. ``httpx-aiohttp``, which
joins the two as well, reports a connection that breaks in the middle of a request as one that was never made:
a submission would be sent twice.
"""

from __future__ import annotations

import io
import math
import ssl
import time
from collections.abc import AsyncIterator
from functools import cache, lru_cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from yarl import URL

from .inputs import ApiKey

IDLE_CONNECTION_EXPIRY = 90.0
"""Seconds; longer than the longest pause between two looks, so that a waiting job keeps its connection."""

MOST_CONNECTIONS = 32
"""At the same time, for one client. Over TLS, asyncio keeps a quarter of a megabyte for each."""

_LIMITS = httpx.Limits(
    max_connections=MOST_CONNECTIONS, max_keepalive_connections=20, keepalive_expiry=IDLE_CONNECTION_EXPIRY
)

_LONGEST_HEADER = 64 * 1024


def blocking_transport(base_url: str) -> httpx.BaseTransport:
    """Return what carries the requests of a blocking client to this server."""
    transport = httpx.HTTPTransport(verify=_tls_context(), limits=_LIMITS, proxy=_proxy(base_url))
    # httpx passes this on to httpcore by no argument of its own.
    pool: Any = transport._pool  # pyright: ignore[reportPrivateUsage]
    pool._network_backend = _Sockets(pool._network_backend)
    return transport


def async_transport(base_url: str) -> httpx.AsyncBaseTransport:
    """Return what carries the requests of an async client to this server."""
    proxy = _proxy(base_url)
    if proxy is not None:  # aiohttp does not know every kind of proxy that httpx does
        return httpx.AsyncHTTPTransport(verify=_tls_context(), limits=_LIMITS, proxy=proxy)
    return AiohttpTransport(_tls_context())


@cache
def _tls_context() -> ssl.SSLContext:
    """Return the one TLS context of this process: to make one takes tens of milliseconds."""
    return httpx.create_ssl_context()


def _proxy(base_url: str) -> str | None:
    """Return the proxy that the environment names for this server."""
    parts = urlsplit(base_url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Carries requests over one aiohttp session, and reports faults as httpx's own transport does.

    Args:
        tls: How servers are trusted.
    """

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the answer as soon as its headers are there."""
        if self._session is None:
            self._session = _session(self._tls)
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


def _session(tls: ssl.SSLContext) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            ssl=tls, limit=MOST_CONNECTIONS, keepalive_timeout=IDLE_CONNECTION_EXPIRY
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


class _Sockets:
    """Opens the connections of a blocking transport, in place of what httpcore has for that."""

    def __init__(self, httpcores: Any) -> None:
        self._httpcores = httpcores

    def connect_tcp(self, *arguments: Any, **options: Any) -> _Stream:
        return _Stream(self._httpcores.connect_tcp(*arguments, **options))


class _Stream:
    """A connection on which a whole answer is read in the time that a request has.

    httpcore's own gives that time to each read. A server that sends its headers in drops, or one
    `100 Continue` after another, would hold the caller for days, or for ever.
    """

    def __init__(self, httpcores: Any) -> None:
        self._httpcores = httpcores
        self._ends = math.inf

    # httpcore passes these arguments by their names, too.

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._httpcores.write(buffer, timeout)
        self._ends = math.inf if timeout is None else time.monotonic() + timeout

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left = self._ends - time.monotonic()
        if left <= 0:
            raise httpx.ReadTimeout("the answer did not end in time")
        data: bytes = self._httpcores.read(max_bytes, timeout if timeout is None else min(timeout, left))
        return data

    def start_tls(self, *arguments: Any, **options: Any) -> _Stream:
        return _Stream(self._httpcores.start_tls(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._httpcores, name)
