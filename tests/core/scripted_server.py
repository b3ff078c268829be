"""A transport that responds from a script: for responses that no sane server gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from noukai_core import InvalidInputError

FLOW = "acme/spelling/grade-3"
KEY = "nk_test_12345678_abcdefghijklmnopqrstuvwxyz012345"
HttpResponse = Callable[[httpx.Request], httpx.Response]


class ScriptedServer:
    """Responds from a list per kind of call, repeats the last response, and records every request."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self._responses: dict[str, list[HttpResponse | Exception]] = {}
        self.transport = httpx.MockTransport(self._handle)
        self.on("submit", accepted("job-1"))

    def on(self, kind: str, *responses: HttpResponse | Exception) -> ScriptedServer:
        """Sets the responses to submit, poll, cancel, session, verify, trace, stream or runs."""
        self._responses[kind] = list(responses)
        return self

    def made(self, kind: str) -> list[httpx.Request]:
        """The requests of one kind, in their order."""
        return [request for request in self.requests if kind_of(request) == kind]

    @property
    def identities(self) -> set[str]:
        """The identities that submissions went out with."""
        names = ("X-Session-Id", "Idempotency-Key")
        return {request.headers[name] for request in self.made("submit") for name in names}

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        responses = self._responses.get(kind_of(request))
        if not responses:
            return httpx.Response(
                404, json={"detail": {"code": "NOT_FOUND", "message": "no script for this call"}}
            )
        response = responses.pop(0) if len(responses) > 1 else responses[0]
        if isinstance(response, Exception):
            raise response
        return response(request)


def kind_of(request: httpx.Request) -> str:
    """Which call of the API a request is."""
    path = request.url.path
    if request.method == "POST":
        return "submit" if path.endswith("/jobs") else "cancel"
    for kind, part in {
        "stream": "/trace/stream",
        "session": "/sessions/",
        "verify": "/keys/verify",
        "trace": "/trace",
        "runs": "/flow-runs",
        "poll": "/jobs/",
    }.items():
        if part in path:
            return kind
    return "other"


def respond(status: int = 200, **content: Any) -> HttpResponse:
    """A response with this status and the arguments of `httpx.Response`."""
    return lambda request: httpx.Response(status, **content)


def accepted(job_id: str = "job-1", **fields: Any) -> HttpResponse:
    """The response to an accepted submission."""
    return respond(
        202, json={"executionId": job_id, "status": "started", "flowId": "flow-1", "blockCount": 1, **fields}
    )


def state(status: str, job_id: str = "job-1", **fields: Any) -> HttpResponse:
    """The response to a poll."""
    return respond(200, json={"executionId": job_id, "status": status, **fields})


def rejection(status: int, code: str = "", message: str = "no", **headers: str) -> HttpResponse:
    """An error response in the server's usual form, with a request id."""
    return respond(
        status,
        json={"detail": {"code": code, "message": message}},
        headers={
            "X-Request-ID": "req-42",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        },
    )


def session(*job_ids: str, **fields: Any) -> HttpResponse:
    """The response for a session with these executions."""
    executions = [
        {"executionId": job_id, "status": "running", "triggerType": "job", **fields} for job_id in job_ids
    ]
    return lambda request: httpx.Response(
        200, json={"sessionId": request.url.path.rsplit("/", 1)[-1], "executions": executions}
    )


def rejected(server: ScriptedServer, act: Callable[[], Any], *reported: str) -> str:
    """Runs the act, which must raise an InvalidInputError that names all of this, with nothing sent."""
    with pytest.raises(InvalidInputError) as caught:
        act()
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert all(part in message for part in reported), message
    assert len(message) < 500
    assert server.requests == []
    return message
