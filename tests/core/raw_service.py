"""A service on a real socket whose responses are written by hand, byte for byte."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.fuzz.raw_server import Chunks, RawServer, ServerAction

Reaction = bytes | Callable[[], Chunks]
"""The bytes of a response, or what is done instead."""

LOST: Reaction = lambda: (ServerAction.RESET,)  # noqa: E731
"""The request took effect, and its response never arrives."""


def http(status: int, body: object = b"", *headers: str) -> bytes:
    """Write a response: an object as JSON, bytes as they are."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(payload)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + payload


def listed(*entries: dict[str, Any]) -> bytes:
    """Write the list of a session."""
    return http(200, {"sessionId": "s", "executions": list(entries)})


ACCEPTED = http(202, {"executionId": "job-1", "status": "started"})
RUNNING = http(200, {"status": "running"})
COMPLETED = http(200, {"status": "completed", "result": "done"})
NO_SESSION = http(404, {"detail": {"code": "SESSION_NOT_FOUND", "message": "No such session."}})
NO_JOB = http(404, {"detail": {"code": "JOB_NOT_FOUND", "message": "No such job."}})

FOREIGN_404 = {
    "AWS API Gateway": http(404, {"message": "Not Found"}),
    "Kong": http(404, {"message": "no Route matched with those values"}),
    "NestJS": http(404, {"statusCode": 404, "message": "Cannot GET /x", "error": "Not Found"}),
    "Spring": http(404, {"timestamp": "2026-01-01T00:00:00Z", "status": 404, "path": "/x"}),
    "Django REST": http(404, {"detail": "Not found."}),
    "FastAPI": http(404, {"detail": "Not Found"}),
    "gRPC": http(404, {"code": 5, "message": "Not Found", "details": []}),
    "problem": http(404, {"type": "about:blank", "title": "Not Found", "status": 404}),
    "Traefik": http(404, b"404 page not found\n"),
    "Kubernetes": http(404, b"default backend - 404"),
    "nginx": http(404, b"<html><head><title>404 Not Found</title></head></html>"),
    "Envoy": http(404),
    "a detail without a code": http(404, {"detail": {"message": "No such session."}}),
}
"""What gateways and routers send."""


class RawService(RawServer):
    """Reacts to each kind of request from a list; the last reaction is for ever.

    Attributes:
        requests: The kind of each request, in their order.
        times: When each arrived.
        last_request: The beginning of the last one.
    """

    def __init__(self) -> None:
        super().__init__(self._react)
        self.requests: list[str] = []
        self._reactions: dict[str, list[Reaction]] = {"submit": [ACCEPTED], "session": [NO_SESSION]}
        self._changed = threading.Condition()
        self.times: list[float] = []
        self.last_request = b""

    def on(self, kind: str, *reactions: Reaction) -> RawService:
        """Set the reactions to submit, session, poll, cancel or trace."""
        self._reactions[kind] = list(reactions)
        return self

    def count(self, kind: str) -> int:
        """Count the requests of one kind."""
        return self.requests.count(kind)

    def wait_for(self, kind: str) -> None:
        """Wait until a request of one kind has arrived."""
        with self._changed:
            assert self._changed.wait_for(lambda: kind in self.requests, timeout=60)

    def _react(self, request: bytes) -> Chunks:
        if not request:  # a connection that was opened and not used
            return ()
        kind = _kind(request)
        with self._changed:
            self.requests.append(kind)
            self.times.append(time.monotonic())
            self.last_request = request
            reactions = self._reactions[kind]
            reaction = reactions.pop(0) if len(reactions) > 1 else reactions[0]
            self._changed.notify_all()
        return (reaction,) if isinstance(reaction, bytes) else reaction()


def _kind(request: bytes) -> str:
    method, path, _ = request.split(b" ", 2)
    if method == b"POST":
        return "cancel" if path.endswith(b"/cancel") else "submit"
    parts = {b"/sessions/": "session", b"/trace": "trace", b"/jobs/": "poll", b"/keys/": "verify"}
    return next(kind for part, kind in parts.items() if part in path)
