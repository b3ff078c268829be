"""Requests over the transports of `transport`, behind httpx's interface.

The transports are driven directly. A ``httpx.Client`` adds redirects, cookies and a log line for each
request, and none of them is wanted here: a job may be looked at a thousand times.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import ssl
import time
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from functools import cache, lru_cache
from typing import Any, cast

import httpx

from .answers import Answer, one_line
from .calls import Call
from .errors import AnswerTooLarge, APIError, InvalidInput, MalformedAnswer, Unavailable
from .inputs import ApiKey
from .settings import Settings
from .transport import MOST_CONNECTIONS, async_transport, blocking_transport

API_VERSION = "2026-05-31"

# Behind a proxy, anyio lets a TLS fault amid an exchange pass as it is, and httpcore does not map it.
_FAULTS = (httpx.TransportError, httpx.DecodingError, ssl.SSLError, zlib.error)

_GZIP = zlib.MAX_WBITS | 16

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)

_OWN_TIMEOUTS_FIRST = 0.5
"""Seconds that the transport's timeouts are given first: they tell whether anything was sent."""


@cache
def _user_agent() -> str:
    return f"noukai-orchestration/{importlib.metadata.version('noukai-orchestration')}"


@lru_cache(maxsize=4096)
def _address(url: str) -> httpx.URL:
    """Parse an address, which takes httpx a tenth of all that a look takes; a job has many looks."""
    return httpx.URL(url)


class _Wire:
    """What the blocking and the async connection have in common."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._closed = False
        try:
            httpx.URL(settings.base_url).host.encode("idna")  # as the look-up of the name will do
        except (httpx.InvalidURL, ValueError) as fault:
            raise InvalidInput(f"base_url {settings.base_url!r} is not a valid address: {fault}") from None
        self._headers = httpx.Headers(
            {
                "Authorization": ApiKey(f"Bearer {settings.api_key}"),
                "X-Noukai-API-Version": API_VERSION,
                "User-Agent": _user_agent(),
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
            }
        )

    def _request(self, call: Call[Any], timeout: float) -> httpx.Request:
        if self._closed:
            raise InvalidInput(f"{call.what}: the client is closed; make a new one")
        headers = self._headers.copy()
        headers.update(call.headers)
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        return httpx.Request(
            call.method,
            _address(f"{self._settings.base_url}/{call.path}"),
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
        packed = response.headers.get("Content-Encoding", "").strip().lower() == "gzip"
        self._unpacker = zlib.decompressobj(_GZIP) if packed and not response.is_stream_consumed else None
        self._most = most
        self._whole = bytearray()

    def take(self, piece: bytes) -> bool:
        """Take the next piece, and tell whether the body is still small enough."""
        if self._unpacker is not None:
            piece = self._unpacker.decompress(piece, self._most + 1 - len(self._whole))
        self._whole += piece
        return len(self._whole) <= self._most

    def whole(self) -> bytes:
        """Return the body."""
        return bytes(self._whole)


def _pieces(response: httpx.Response) -> Iterator[bytes]:
    return response.iter_bytes() if response.is_stream_consumed else response.iter_raw()


def _async_pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    if response.is_stream_consumed:
        return response.aiter_bytes()
    # What aiter_raw does beside this costs a thirtieth of a look.
    return aiter(cast("AsyncIterable[bytes]", response.stream))


class Connection(_Wire):
    """Sends calls and blocks until they are answered. Threads may share it."""

    def __init__(self, settings: Settings, transport: httpx.BaseTransport | None) -> None:
        super().__init__(settings)
        self._transport = transport or blocking_transport(settings.base_url)

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
        self._transport = transport or async_transport(settings.base_url)
        self._loop: asyncio.AbstractEventLoop | None = None
        # Whoever waits for a connection waits here, and not in a transport's pool. That of httpcore 1.0, used
        # behind a proxy, goes through all that wait in it for each request: a thousand of them, after an
        # outage, keep the loop so busy that none ends in time.
        self._room = asyncio.Semaphore(MOST_CONNECTIONS)

    async def send(self, call: Call[Any], timeout: float | None = None) -> Answer | APIError:
        """Send a call once; every fault comes back as a value, without what it was raised from."""
        allowed = self._settings.timeout if timeout is None else timeout
        self._check_loop()
        if not await self._found_room(allowed):
            return self._no_answer(call, httpx.PoolTimeout("every connection is busy"), allowed)
        try:
            request = self._request(call, allowed)  # not before: the client may be closed meanwhile
            async with asyncio.timeout(allowed + _OWN_TIMEOUTS_FIRST):
                return await self._exchange(call, request)
        except TimeoutError:
            return self._no_answer(call, httpx.ReadTimeout(""), allowed)
        except _FAULTS as fault:
            return self._no_answer(call, fault, allowed)
        finally:
            self._room.release()

    async def _found_room(self, allowed: float) -> bool:
        if not self._room.locked():
            return await self._room.acquire()  # at once, and without a timer
        try:
            async with asyncio.timeout(allowed):
                return await self._room.acquire()
        except TimeoutError:
            return False

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
