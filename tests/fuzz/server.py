"""A server that responds from a script in which nothing need make sense, and that notices an endless loop."""

from __future__ import annotations

import httpx

from tests.core.scripted_server import kind_of
from tests.fuzz.nonsense import Given

TAKEN = Given(202, (), (b'{"executionId":"job-1","status":"started"}',))
UNCLEAR = Given(502, (), (b"<html>bad gateway</html>",))
UNKNOWN = Given(404, (), (b'{"detail":{"code":"SESSION_NOT_FOUND"}}',))


class Server:
    """Responds from a list for each kind of call, and repeats the last response; other calls are unknown.

    Attributes:
        requests: The requests that it received.
    """

    def __init__(self, most_requests: float, **scripts: list[Given]) -> None:
        self.requests: list[httpx.Request] = []
        self.transport = httpx.MockTransport(self._respond)
        self._most = most_requests
        self._scripts = {kind: list(script) for kind, script in scripts.items()}

    def _respond(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        assert len(self.requests) <= self._most, "this asks again and again, and hardly pauses"
        script = self._scripts.get(kind_of(request), [UNKNOWN])
        return (script.pop(0) if len(script) > 1 else script[0]).respond()
