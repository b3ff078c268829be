"""Requests over httpx's transports.

The transports are driven directly. A ``httpx.Client`` adds redirects, cookies and a log line for each
request, and none of them is wanted here: a job may be looked at a thousand times.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import math
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from .answers import Answer, one_line
from .calls import Call
from .errors import AnswerTooLarge, APIError, InvalidInput, MalformedAnswer, Unavailable
from .inputs import ApiKey
from .settings import Settings

API_VERSION = "2026-05-31"

IDLE_CONNECTION_EXPIRY = 90.0
"""Seconds; longer than the longest pause between two looks, so that a waiting job keeps its connection."""

_MOST_CONNECTIONS = 100

_LIMITS = httpx.Limits(
    max_connections=_MOST_CONNECTIONS, max_keepalive_connections=20, keepalive_expiry=IDLE_CONNECTION_EXPIRY
)

# anyio lets a TLS fault in the middle of an exchange pass as it is, and httpcore does not map it.
_FAULTS = (httpx.TransportError, httpx.DecodingError, ssl.SSLError, zlib.error)

_GZIP = zlib.MAX_WBITS | 16

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)

_OWN_TIMEOUTS_FIRST = 0.5
"""Seconds that the transport's timeouts are given first: they tell whether anything was sent."""


@cache
def _tls_context() -> ssl.SSLContext:
    """Return the one TLS context of this process: to make one takes tens of milliseconds."""
    return httpx.create_ssl_context()


@cache
def _user_agent() -> str:
    return f"noukai-orchestration/{importlib.metadata.version('noukai-orchestration')}"


def _proxy(base_url: str) -> str | None:
    """Return the proxy that the environment names for this server."""
    parts = urlsplit(base_url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


class _Wire:
    """What the blocking and the async connection have in common."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._closed = False
        try:
            _ = httpx.URL(settings.base_url).host  # the name is read only here
        except (httpx.InvalidURL, ValueError) as fault:
            raise InvalidInput(f"base_url {settings.base_url!r} is not a valid address: {fault}") from None

    def _request(self, call: Call[Any], timeout: float) -> httpx.Request:
        if self._closed:
            raise InvalidInput(f"{call.what}: the client is closed; make a new one")
        headers = {
            "Authorization": ApiKey(f"Bearer {self._settings.api_key}"),
            "X-Noukai-API-Version": API_VERSION,
            "User-Agent": _user_agent(),
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            **call.headers,
        }
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        return httpx.Request(
            call.method,
            f"{self._settings.base_url}/{call.path}",
            headers=headers,
            content=call.body,
            extensions={"timeout": httpx.Timeout(timeout).as_dict()},
        )

    def _too_large(self, call: Call[Any], response: httpx.Response) -> AnswerTooLarge:
        return AnswerTooLarge(
            f"{call.what}: the answer is larger than {self._settings.max_answer_bytes} bytes. "
            "Raise max_answer_bytes if the flow's output is meant to be so large.",
            status_code=response.status_code,
            request_id=_answer(response).request_id,
            job_id=call.job_id,
        )

    def _no_answer(self, call: Call[Any], fault: Exception, timeout: float) -> APIError:
        said = one_line(str(fault))  # h11 quotes what it cannot read, whatever it is
        if isinstance(fault, httpx.DecodingError | zlib.error):
            return MalformedAnswer(
                f"{call.what}: the answer's encoding is broken: {said}", job_id=call.job_id
            )
        reason = said or f"nothing within {timeout:g} s"
        return Unavailable(
            f"{call.what}: no answer from {self._settings.base_url} ({type(fault).__name__}: {reason})",
            job_id=call.job_id,
            never_processed=isinstance(fault, _NEVER_SENT),
        )


def _answer(response: httpx.Response, body: bytes = b"") -> Answer:
    return Answer(response.status_code, {k.lower(): v for k, v in response.headers.items()}, body)


class _Body:
    """The body of an answer, which arrives in pieces and is never unpacked beyond what is allowed.

    httpx would unpack each piece whole: one that was packed twice grows a million times. An encoding that was
    not asked for is left as it is.
    """

    def __init__(self, response: httpx.Response, most: int) -> None:
        # What a transport has read before this is unpacked already.
        self._packed = (
            response.headers.get("Content-Encoding", "").strip().lower() == "gzip"
            and not response.is_stream_consumed
        )
        self._unpacker = zlib.decompressobj(_GZIP)
        self._most = most
        self._whole = bytearray()

    def take(self, piece: bytes) -> bool:
        """Take the next piece, and tell whether the body is still small enough."""
        if self._packed:
            piece = self._unpacker.decompress(piece, self._most + 1 - len(self._whole))
        self._whole += piece
        return len(self._whole) <= self._most

    def whole(self) -> bytes:
        """Return the body."""
        return bytes(self._whole)


def _pieces(response: httpx.Response) -> Iterator[bytes]:
    return response.iter_bytes() if response.is_stream_consumed else response.iter_raw()


def _async_pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    return response.aiter_bytes() if response.is_stream_consumed else response.aiter_raw()


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

    def write(self, data: bytes, timeout: float | None = None) -> None:
        self._httpcores.write(data, timeout)
        self._ends = math.inf if timeout is None else time.monotonic() + timeout

    def read(self, most: int, timeout: float | None = None) -> bytes:
        left = self._ends - time.monotonic()
        if left <= 0:
            raise httpx.ReadTimeout("the answer did not end in time")
        data: bytes = self._httpcores.read(most, timeout if timeout is None else min(timeout, left))
        return data

    def start_tls(self, *arguments: Any, **options: Any) -> _Stream:
        return _Stream(self._httpcores.start_tls(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._httpcores, name)


def _blocking_transport(settings: Settings) -> httpx.BaseTransport:
    transport = httpx.HTTPTransport(verify=_tls_context(), limits=_LIMITS, proxy=_proxy(settings.base_url))
    # httpx passes this on to httpcore by no argument of its own.
    pool: Any = transport._pool  # pyright: ignore[reportPrivateUsage]
    pool._network_backend = _Sockets(pool._network_backend)
    return transport


class Connection(_Wire):
    """Sends calls and blocks until they are answered. Threads may share it."""

    def __init__(self, settings: Settings, transport: httpx.BaseTransport | None) -> None:
        super().__init__(settings)
        self._transport = transport or _blocking_transport(settings)

    def send(self, call: Call[Any], timeout: float | None = None) -> Answer | APIError:
        """Send a call once; every fault comes back as a value, without what it was raised from."""
        allowed = self._settings.timeout if timeout is None else timeout
        request = self._request(call, allowed)
        ends = time.monotonic() + allowed
        try:
            response = self._transport.handle_request(request)
            try:
                body = _Body(response, self._settings.max_answer_bytes)
                for piece in _pieces(response):
                    if not body.take(piece):
                        return self._too_large(call, response)
                    if time.monotonic() > ends:
                        raise httpx.ReadTimeout("the answer did not end in time")
                return _answer(response, body.whole())
            finally:
                response.close()
        except _FAULTS as fault:
            return self._no_answer(call, fault, allowed)

    def close(self) -> None:
        """Close the connections; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self._transport.close()


class AsyncConnection(_Wire):
    """Sends calls on one event loop."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None) -> None:
        super().__init__(settings)
        self._transport = transport or httpx.AsyncHTTPTransport(
            verify=_tls_context(), limits=_LIMITS, proxy=_proxy(settings.base_url)
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        # Whoever waits for a connection waits here: for each request, httpcore 1.0 goes through all that wait
        # in its pool. A thousand of them, after an outage, keep the loop so busy that none ends in time.
        self._room = asyncio.Semaphore(_MOST_CONNECTIONS)

    async def send(self, call: Call[Any], timeout: float | None = None) -> Answer | APIError:
        """Send a call once; every fault comes back as a value, without what it was raised from."""
        allowed = self._settings.timeout if timeout is None else timeout
        request = self._request(call, allowed)
        self._check_loop()
        try:
            async with asyncio.timeout(allowed):
                await self._room.acquire()
        except TimeoutError:
            return self._no_answer(call, httpx.PoolTimeout("every connection is busy"), allowed)
        try:
            async with asyncio.timeout(allowed + _OWN_TIMEOUTS_FIRST):
                return await self._exchange(call, request)
        except TimeoutError:
            return self._no_answer(call, httpx.ReadTimeout(""), allowed)
        except _FAULTS as fault:
            return self._no_answer(call, fault, allowed)
        finally:
            self._room.release()

    async def _exchange(self, call: Call[Any], request: httpx.Request) -> Answer | APIError:
        response = await self._transport.handle_async_request(request)
        try:
            body = _Body(response, self._settings.max_answer_bytes)
            async for piece in _async_pieces(response):
                if not body.take(piece):
                    return self._too_large(call, response)
            return _answer(response, body.whole())
        finally:
            await response.aclose()

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise InvalidInput("this client belongs to another event loop: make one client for each loop")

    async def aclose(self) -> None:
        """Close the connections; a second time does nothing."""
        if not self._closed:
            self._closed = True
            await self._transport.aclose()
