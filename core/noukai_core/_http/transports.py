"""The transport of each client: httpx's for the blocking one, aiohttp's for the async one."""

from __future__ import annotations

import math
import os
import ssl
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from noukai_core._api.parsing import HttpResponse
from noukai_core._http.httpx_transport import AsyncHttpxTransport, HttpxTransport
from noukai_core._http.messages import HttpRequest
from noukai_core._options import ClientOptions
from noukai_core.addresses import is_loopback
from noukai_core.errors import InvalidInputError

IDLE_CONNECTION_EXPIRY = 90.0
"""Seconds; longer than the longest pause between two polls, so that a waiting job keeps its connection."""

MAX_CONCURRENT_CALLS = 32
"""The most requests that one client has open at the same time in addition to its submissions.

Each uses a connection. An async client opens fewer as long as they are enough (`connection_limiter.py`).
"""

_DEFAULT_PORTS = {"http": 80, "https": 443}

_WRITTEN_AT_ONCE = 16 * 1024
"""Bytes of a request that are written before the time that is left is checked again."""

_READ_AT_ONCE = 16 * 1024
"""Bytes of a response that an async client parses before the event loop goes on.

Behind a proxy, a thousand interim responses take 70 ms to parse.
"""


class AsyncTransport(Protocol):
    """What an async client sends its requests over."""

    async def exchange(self, request: HttpRequest, most_bytes: int) -> HttpResponse:
        """Send a request, and return its response."""
        ...

    async def open(self, request: HttpRequest) -> httpx.Response:
        """Send a request, and return its response, whose body is still to be read."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


def blocking_transport(settings: ClientOptions, given: httpx.BaseTransport | None) -> HttpxTransport:
    """Return the transport of a blocking client: the user's, or a new one."""
    if given is not None:
        return HttpxTransport(given)
    proxy, tls = _proxy(settings.base_url), _tls_context()
    with _named_proxy():
        transport = httpx.HTTPTransport(verify=tls, limits=_limits(settings), proxy=proxy)
    # httpx has no argument to pass this on to httpcore.
    pool: Any = transport._pool  # pyright: ignore[reportPrivateUsage]
    pool._network_backend = _Sockets(pool._network_backend)
    return HttpxTransport(transport)


def async_transport(settings: ClientOptions, given: httpx.AsyncBaseTransport | None) -> AsyncTransport:
    """Return the transport of an async client: the user's, or a new one."""
    if given is not None:
        return AsyncHttpxTransport(given)
    proxy = _proxy(settings.base_url)
    if proxy is not None:  # aiohttp does not know every kind of proxy that httpx does
        tls = _tls_context()
        with _named_proxy():
            transport = httpx.AsyncHTTPTransport(verify=tls, limits=_limits(settings), proxy=proxy)
        pool: Any = transport._pool  # pyright: ignore[reportPrivateUsage]
        pool._network_backend = _AsyncSockets(pool._network_backend)
        return AsyncHttpxTransport(transport)
    from noukai_core._http.aiohttp_transport import (
        AiohttpTransport,  # only here: importing aiohttp takes a tenth of a second
    )

    return AiohttpTransport(_tls_context(), _most_connections(settings), IDLE_CONNECTION_EXPIRY)


def _most_connections(settings: ClientOptions) -> int:
    return MAX_CONCURRENT_CALLS + settings.max_concurrent_submissions + settings.max_followed_jobs


def _limits(settings: ClientOptions) -> httpx.Limits:
    most = _most_connections(settings)
    return httpx.Limits(
        max_connections=most, max_keepalive_connections=most, keepalive_expiry=IDLE_CONNECTION_EXPIRY
    )


@cache
def _tls_context() -> ssl.SSLContext:
    """Return the one TLS context of this process: creating one takes tens of milliseconds."""
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates and not os.path.isfile(certificates):  # httpx 0.27 uses its own instead, without a word
        raise InvalidInputError(
            f"SSL_CERT_FILE names certificates that cannot be read: no file {certificates}"
        )
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # an SSLError is one, too
        raise InvalidInputError(
            f"SSL_CERT_FILE or SSL_CERT_DIR names certificates that cannot be read: {error}"
        ) from None


@contextmanager
def _named_proxy() -> Generator[None]:
    """Turn what httpx says of a proxy into an error that names where it comes from, and not the proxy."""
    try:
        yield
    except (httpx.InvalidURL, ValueError, ImportError) as error:
        reason = str(error) if isinstance(error, ImportError) else "it is not a valid address"
        raise InvalidInputError(
            f"the proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY cannot be used: {reason}"
        ) from None


def _proxy(base_url: str) -> str | None:
    """Return the proxy that the environment names for this server. Nothing for this machine leaves it."""
    if is_loopback(base_url):
        return None
    parts = urlsplit(base_url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    if not proxy or proxy_bypass(f"{parts.hostname}:{port}"):
        return None
    address = proxy if "://" in proxy else f"http://{proxy}"
    with _named_proxy():
        proxy_parts = urlsplit(address)
        if not proxy_parts.hostname or proxy_parts.port == 0:  # its port is read here, and may be wrong
            raise ValueError(address)
    return address


class _Sockets:
    """Opens the connections of a blocking transport, in place of httpcore's network backend."""

    def __init__(self, httpcores: Any) -> None:
        self._httpcores = httpcores

    def connect_tcp(self, *arguments: Any, **options: Any) -> _Stream:
        return _Stream(self._httpcores.connect_tcp(*arguments, **options))


class _Stream:
    """A connection on which a request is written, and its response read, each in the time that it has.

    httpcore gives that time to each write and each read. A server that takes a request or sends a response in
    drops, or that sends one `100 Continue` after another, would hold the caller for days, or for ever.
    """

    def __init__(self, httpcores: Any) -> None:
        self._httpcores = httpcores
        self._writing = False
        self._ends = math.inf

    # httpcore also passes these arguments by name.

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not self._writing:
            self._writing, self._ends = True, _end_of(timeout)
        for begin in range(0, len(buffer), _WRITTEN_AT_ONCE):
            left = self._ends - time.monotonic()
            if left <= 0:
                raise httpx.WriteTimeout("the request was not taken in time")
            self._httpcores.write(
                buffer[begin : begin + _WRITTEN_AT_ONCE], timeout if timeout is None else min(timeout, left)
            )

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._writing:
            self._writing, self._ends = False, _end_of(timeout)
        left = self._ends - time.monotonic()
        if left <= 0:
            raise httpx.ReadTimeout("the response did not end in time")
        data: bytes = self._httpcores.read(max_bytes, timeout if timeout is None else min(timeout, left))
        return data

    def start_tls(self, *arguments: Any, **options: Any) -> _Stream:
        return _Stream(self._httpcores.start_tls(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._httpcores, name)


class _AsyncSockets:
    """Opens the connections of an async transport, in place of httpcore's network backend."""

    def __init__(self, httpcores: Any) -> None:
        self._httpcores = httpcores

    async def connect_tcp(self, *arguments: Any, **options: Any) -> _AsyncStream:
        return _AsyncStream(await self._httpcores.connect_tcp(*arguments, **options))


class _AsyncStream:
    """A connection of which little is read at once."""

    def __init__(self, httpcores: Any) -> None:
        self._httpcores = httpcores

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data: bytes = await self._httpcores.read(min(max_bytes, _READ_AT_ONCE), timeout)
        return data

    async def start_tls(self, *arguments: Any, **options: Any) -> _AsyncStream:
        return _AsyncStream(await self._httpcores.start_tls(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._httpcores, name)


def _end_of(timeout: float | None) -> float:
    return math.inf if timeout is None else time.monotonic() + timeout
