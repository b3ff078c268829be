"""Transports some of whose requests are sent to a port without a listener."""

from __future__ import annotations

import socket
from collections import Counter
from contextvars import ContextVar
from random import Random

import httpx

from tests.faults import scale

subject: ContextVar[str] = ContextVar("subject")
"""What the requests of this thread or task are about: the faults of a seed are drawn by it."""


class _Refusals:
    def __init__(self, probability: float) -> None:
        self._probability = probability
        self._requests: Counter[str] = Counter()
        self._met: Counter[str] = Counter()
        # Bound, so that no other process gets the port, but not listening.
        self._nobody = socket.socket()
        self._nobody.bind(("127.0.0.1", 0))

    @property
    def share(self) -> float:
        return self._met.total() / max(1, self._requests.total())

    def aimed(self, request: httpx.Request) -> httpx.Request:
        name = subject.get()
        self._requests[name] += 1
        if Random(f"{scale.SEED}/{name}/{self._requests[name]}").random() < self._probability:
            self._met[name] += 1
            request.url = request.url.copy_with(port=self._nobody.getsockname()[1])
        return request

    def close(self) -> None:
        self._nobody.close()


class Refusing(httpx.HTTPTransport):
    """The transport of a blocking client, some of whose connections are refused."""

    def __init__(self, probability: float) -> None:
        super().__init__(verify=False)
        self.refusals = _Refusals(probability)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request there, or to the port without a listener."""
        return super().handle_request(self.refusals.aimed(request))

    def close(self) -> None:
        """Close the connections."""
        self.refusals.close()
        super().close()


class AsyncRefusing(httpx.AsyncHTTPTransport):
    """The transport of an async client, some of whose connections are refused."""

    def __init__(self, probability: float) -> None:
        super().__init__(verify=False)
        self.refusals = _Refusals(probability)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request there, or to the port without a listener."""
        return await super().handle_async_request(self.refusals.aimed(request))

    async def aclose(self) -> None:
        """Close the connections."""
        self.refusals.close()
        await super().aclose()
