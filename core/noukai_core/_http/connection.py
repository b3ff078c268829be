"""How a call becomes a request, and its outcome a response or an error."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import ssl
import time
import zlib
from functools import cache
from typing import Any

import httpx

from noukai_core._api.endpoints import Call
from noukai_core._api.events import ServerEvent
from noukai_core._api.parsing import HttpResponse
from noukai_core._http.connection_limiter import ConnectionLimiter
from noukai_core._http.event_stream import (
    MAX_EVENT_BYTES,
    SILENCE_SECONDS,
    AsyncEventStream,
    EventBound,
    EventStream,
    is_event_stream,
)
from noukai_core._http.httpx_transport import aread_response, read_response
from noukai_core._http.messages import HttpRequest, TooLargeError
from noukai_core._http.transports import MAX_CONCURRENT_CALLS, async_transport, blocking_transport
from noukai_core._options import ClientOptions
from noukai_core._text import one_line
from noukai_core._validation import ApiKey, secrets_of, without_secrets
from noukai_core.errors import (
    APIError,
    CertificateError,
    ClientClosedError,
    ConnectionPoolTimeoutError,
    InvalidInputError,
    InvalidResponseError,
    ResponseTooLargeError,
    TransientError,
)
from noukai_core.time_limit import time_limit

API_VERSION = "2026-05-31"

# Behind a proxy, anyio raises a TLS error during an exchange as it is, and httpcore does not map it.
_FAULTS = (httpx.TransportError, httpx.DecodingError, ssl.SSLError, zlib.error)

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)

_OWN_TIMEOUTS_FIRST = 0.5
"""Seconds by which a transport's own timeouts come first in a submission: they tell whether it was sent."""

_QUEUE_SHARE = 0.5
"""The share of its timeout for which a request waits for a connection; the response has the rest."""

_MAX_TIMEOUT = 24 * 3600.0
"""Seconds that one request may take at most, whatever is set: sockets take no number without an end."""


@cache
def _user_agent() -> str:
    return f"noukai-orchestration/{importlib.metadata.version('noukai-orchestration')}"


class BaseConnection:
    """What the blocking and the async connection have in common."""

    def __init__(self, settings: ClientOptions) -> None:
        self._settings = settings
        self._closed = False
        try:
            address = httpx.URL(settings.base_url)
            address.host.encode("idna")  # as the name resolution will do
        except (httpx.InvalidURL, ValueError) as fault:
            raise InvalidInputError(
                f"base_url {settings.base_url!r} is not a valid address: {fault}"
            ) from None
        # As httpx parses it, for every transport: aiohttp reads `straße` as `strasse`, another host.
        self._base_url = str(address).rstrip("/")
        self._headers = {
            "Authorization": ApiKey("Bearer " + settings.api_key),
            "X-Noukai-API-Version": API_VERSION,
            "User-Agent": _user_agent(),
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            # A cache in between would show a session or a state of before.
            "Cache-Control": "no-cache",
        }

    def __reduce__(self) -> str:
        """Refuse to be pickled, as part of a client, a flow or a job."""
        raise TypeError(
            "a Noukai client, its flows and its jobs hold connections and the API key, so cannot be pickled "
            "or copied: pass the id of a job, and attach to it with a client of the other process"
        )

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._closed

    def _client_closed(self, call: Call[Any]) -> ClientClosedError:
        return ClientClosedError(
            f"{call.operation}: not sent, as the client is closed; make a new one",
            job_id=call.job_id,
            never_processed=True,
        )

    def _request(self, call: Call[Any], timeout: float) -> HttpRequest:
        if call.on_send is not None:
            call.on_send()
        headers = {**self._headers, **call.headers}
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        return HttpRequest(
            call.method, f"{self._base_url}/{call.path}", headers, call.body, timeout, call.cut_at
        )

    def _event_bound(self) -> EventBound:
        return EventBound(MAX_EVENT_BYTES, self._settings.max_response_bytes)

    def _too_large(self, call: Call[Any], head: HttpResponse) -> ResponseTooLargeError:
        return ResponseTooLargeError(
            f"{call.operation}: the response is larger than {self._settings.max_response_bytes} bytes. "
            "Raise max_response_bytes if the flow's output is meant to be that large.",
            status_code=head.status_code,
            request_id=head.request_id,
            job_id=call.job_id,
        )

    def _no_response(self, call: Call[Any], fault: Exception, timeout: float) -> APIError:
        # What is not HTTP is quoted in it, and may repeat the key.
        message = one_line(without_secrets(str(fault), secrets_of(self._settings.api_key)))
        if isinstance(fault, httpx.DecodingError | zlib.error):
            return InvalidResponseError(
                f"{call.operation}: the response's encoding is broken: {message}", job_id=call.job_id
            )
        if _is_untrusted(fault):
            return CertificateError(
                f"{call.operation}: the TLS certificate of {self._settings.base_url} is not trusted: "
                f"{message}. If your own authority has signed it, set SSL_CERT_FILE to its certificate.",
                job_id=call.job_id,
                never_processed=True,
            )
        reason = message or f"nothing within {round(timeout, 2):g} s"
        kind = ConnectionPoolTimeoutError if isinstance(fault, httpx.PoolTimeout) else TransientError
        return kind(
            f"{call.operation}: no response from {self._settings.base_url} "
            f"({type(fault).__name__}: {reason})",
            job_id=call.job_id,
            never_processed=isinstance(fault, _NEVER_SENT),
        )


def _is_untrusted(fault: BaseException | None) -> bool:
    """Tell whether a fault comes from a server's certificate that is not trusted."""
    while fault is not None:
        if isinstance(fault, ssl.SSLCertVerificationError):
            return True
        fault = fault.__cause__ or fault.__context__
    return False


class Connection(BaseConnection):
    """Sends calls and blocks until their responses arrive. Threads may share it."""

    def __init__(self, settings: ClientOptions, transport: httpx.BaseTransport | None) -> None:
        super().__init__(settings)
        self._transport = blocking_transport(settings, transport)
        self._process: int | None = None

    def send(self, call: Call[Any], timeout: float | None = None) -> HttpResponse | APIError:
        """Send a call once. Every error is returned as a value, without its cause."""
        allowed = min(self._settings.timeout if timeout is None else timeout, _MAX_TIMEOUT)
        self.check_process()
        if self._closed:
            return self._client_closed(call)
        request = self._request(call, allowed)
        try:
            return self._transport.exchange(request, self._settings.max_response_bytes)
        except TooLargeError as large:
            return self._too_large(call, large.head)
        except _FAULTS as fault:
            return self._no_response(call, fault, allowed)

    def open(self, call: Call[Any]) -> EventStream | HttpResponse | APIError:
        """Open the stream of a call, or return the response that is none."""
        self.check_process()
        if self._closed:
            return self._client_closed(call)
        request = self._request(call, SILENCE_SECONDS)
        try:
            response = self._transport.open(request)
            if is_event_stream(response):
                return EventStream(response, self._event_bound())
            ends = time.monotonic() + self._settings.timeout
            return read_response(response, self._settings.max_response_bytes, request.cut_at, ends)
        except _FAULTS as fault:
            return self._no_response(call, fault, SILENCE_SECONDS)

    def receive(self, call: Call[Any], stream: EventStream) -> ServerEvent | APIError | None:
        """Return the next event of a stream, `None` at its end, or the error that ended it."""
        try:
            return stream.next()
        except TooLargeError as large:
            return self._too_large(call, large.head)
        except _FAULTS as fault:
            return self._no_response(call, fault, SILENCE_SECONDS)

    def check_process(self) -> None:
        """Check that the client was not used before a fork: both processes would read the same responses.

        Raises:
            InvalidInputError: It was.
        """
        process = os.getpid()
        if self._process is None:
            self._process = process
        elif self._process != process:
            raise InvalidInputError(
                "this client was used before this process was forked from another one: make one client for "
                "each process"
            )

    def close(self) -> None:
        """Close the connections. Closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self._transport.close()


class AsyncConnection(BaseConnection):
    """Sends calls on one event loop."""

    def __init__(self, settings: ClientOptions, transport: httpx.AsyncBaseTransport | None) -> None:
        super().__init__(settings)
        self._transport = async_transport(settings, transport)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limiter = ConnectionLimiter(MAX_CONCURRENT_CALLS)

    async def send(self, call: Call[Any], timeout: float | None = None) -> HttpResponse | APIError:
        """Send a call once. Every error is returned as a value, without its cause."""
        allowed = min(self._settings.timeout if timeout is None else timeout, _MAX_TIMEOUT)
        self._check_loop()
        if call.submits:  # submissions have their own limit
            return await self._exchange(call, allowed)
        began, longest_queue = time.monotonic(), allowed * _QUEUE_SHARE
        if not await self._limiter.enter(longest_queue):
            return self._not_sent(call, longest_queue)
        waited = min(time.monotonic() - began, longest_queue)  # more only if the loop was blocked
        try:
            return await self._exchange(call, allowed - waited)
        finally:
            self._limiter.leave()

    async def _exchange(self, call: Call[Any], allowed: float) -> HttpResponse | APIError:
        if self._closed:  # checked here because the client may be closed during the wait
            return self._client_closed(call)
        request = self._request(call, allowed)
        try:
            async with time_limit(allowed + (_OWN_TIMEOUTS_FIRST if call.submits else 0.0)):
                return await self._transport.exchange(request, self._settings.max_response_bytes)
        except TooLargeError as large:
            return self._too_large(call, large.head)
        except TimeoutError:
            return self._no_response(call, httpx.ReadTimeout(""), allowed)
        except _FAULTS as fault:
            return self._no_response(call, fault, allowed)

    async def open(self, call: Call[Any]) -> AsyncEventStream | HttpResponse | APIError:
        """Open the stream of a call, or return the response that is none."""
        self._check_loop()
        if self._closed:
            return self._client_closed(call)
        request = self._request(call, self._settings.timeout)
        try:
            async with time_limit(self._settings.timeout):
                response = await self._transport.open(request)
                if is_event_stream(response):
                    return AsyncEventStream(response, self._event_bound())
                return await aread_response(response, self._settings.max_response_bytes, request.cut_at)
        except TimeoutError:
            return self._no_response(call, httpx.ReadTimeout(""), self._settings.timeout)
        except _FAULTS as fault:
            return self._no_response(call, fault, self._settings.timeout)

    async def receive(self, call: Call[Any], stream: AsyncEventStream) -> ServerEvent | APIError | None:
        """Return the next event of a stream, `None` at its end, or the error that ended it."""
        try:
            async with time_limit(SILENCE_SECONDS):
                return await stream.next()
        except TooLargeError as large:
            return self._too_large(call, large.head)
        except TimeoutError:
            return self._no_response(call, httpx.ReadTimeout(""), SILENCE_SECONDS)
        except _FAULTS as fault:
            return self._no_response(call, fault, SILENCE_SECONDS)

    def _not_sent(self, call: Call[Any], waited: float) -> ConnectionPoolTimeoutError:
        return ConnectionPoolTimeoutError(
            f"{call.operation}: not sent to {self._settings.base_url}, as none of this client's "
            f"{MAX_CONCURRENT_CALLS} connections became free within {waited:g} s",
            job_id=call.job_id,
            never_processed=True,
        )

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise InvalidInputError(
                "this client belongs to another event loop: make one client for each loop"
            )

    async def aclose(self) -> None:
        """Close the connections. Closing twice does nothing."""
        if not self._closed:
            self._closed = True
            await self._transport.aclose()
