"""Requests over a transport of httpx: a blocking client's, an async one's behind a proxy, or the user's own.

The transports are driven directly. A ``httpx.Client`` adds redirects, cookies and a log line for each
request, and none of them is wanted here: a job may be looked at a thousand times.
"""

from __future__ import annotations

import time
from functools import lru_cache

import httpx

from noukai_core._api.parsing import HttpResponse
from noukai_core._http.messages import HttpRequest, ResponseReader


class HttpxTransport:
    """Carries requests over a blocking transport of httpx."""

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport

    def exchange(self, request: HttpRequest, most_bytes: int) -> HttpResponse:
        """Send a request, and return its answer; faults come as httpx's."""
        ends = time.monotonic() + request.timeout
        response = self._transport.handle_request(_request(request))
        try:
            incoming = _incoming(response, most_bytes)
            for chunk in response.iter_bytes() if incoming.unpacked else response.iter_raw():
                incoming.take(chunk)
                if time.monotonic() > ends:
                    raise httpx.ReadTimeout("the answer did not end in time")
            return incoming.response()
        finally:
            response.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


class AsyncHttpxTransport:
    """Carries requests over an async transport of httpx."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def exchange(self, request: HttpRequest, most_bytes: int) -> HttpResponse:
        """Send a request, and return its answer; faults come as httpx's. The caller limits the time."""
        response = await self._transport.handle_async_request(_request(request))
        try:
            incoming = _incoming(response, most_bytes)
            async for chunk in response.aiter_bytes() if incoming.unpacked else response.aiter_raw():
                incoming.take(chunk)
            return incoming.response()
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


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
    """Parse an address, which takes httpx a tenth of all that a look takes; a job has many looks."""
    return httpx.URL(url)


def _incoming(response: httpx.Response, most_bytes: int) -> ResponseReader:
    # What a transport has read already, it has also unpacked.
    read = response.is_stream_consumed
    return ResponseReader(response.status_code, response.headers.raw, most_bytes, unpacked=read)
