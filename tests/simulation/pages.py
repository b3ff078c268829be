"""The pages of gateways that stand between a client and the service. None says anything about a job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_SERVICE = "service"

CUT_OFF = "service, cut off"
"""The origin of a response of which only a part has arrived."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response on the wire.

    Attributes:
        origin: Who wrote it: `service`, or the name of a gateway.
        proves_absence: Whether it is the service's own word that a session holds no job.
        listed: The submissions whose jobs the list of a session names, if it is one that can be read.
        recognisable: Whether it names the job that was asked for by an id that can be told to be the job's.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    origin: str = _SERVICE
    proves_absence: bool = False
    listed: frozenset[str] | None = None
    recognisable: bool = True

    @property
    def own(self) -> bool:
        """Whether the service itself wrote it, though not all of it may have arrived."""
        return self.origin in (_SERVICE, CUT_OFF)

    @property
    def whole(self) -> bool:
        """Whether all of it has arrived."""
        return self.origin != CUT_OFF

    def __str__(self) -> str:
        return f"{self.status} of the {self.origin}: {self.body[:90].decode('utf-8', 'replace')}"


def _json(origin: str, status: int, value: Any, **headers: str) -> Response:
    body = json.dumps(value).encode()
    return Response(status, body, {"content-type": "application/json", **headers}, origin)


def _text(origin: str, status: int, body: str, kind: str = "text/html", **headers: str) -> Response:
    return Response(status, body.encode(), {"content-type": kind, **headers}, origin)


_NGINX = "<html><head><title>{0}</title></head><body><center><h1>{0}</h1></center><hr>nginx</body></html>"

FOREIGN_404 = (
    _text("Traefik", 404, "404 page not found\n", "text/plain"),
    _text("Kubernetes ingress", 404, "default backend - 404", "text/plain"),
    _text("nginx", 404, _NGINX.format("404 Not Found")),
    _json("AWS API Gateway", 404, {"message": "Not Found"}),
    _json("Kong", 404, {"message": "no Route matched with those values"}),
    _json(
        "NestJS",
        404,
        {"statusCode": 404, "message": "Cannot GET /api/v1/seq", "error": "Not Found"},
    ),
    _json(
        "Spring",
        404,
        {"timestamp": "2030-01-01T00:00:00Z", "status": 404, "error": "Not Found", "path": "/api/v1/seq"},
    ),
    _json("Django REST", 404, {"detail": "Not found."}),
    _json("FastAPI", 404, {"detail": "Not Found"}),
    _json("gRPC gateway", 404, {"code": 5, "message": "Not Found", "details": []}),
    _json(
        "problem+json",
        404,
        {"type": "about:blank", "title": "Not Found", "status": 404, "detail": "No static resource"},
    ),
    _text(
        "S3",
        404,
        '<?xml version="1.0"?><Error><Code>NoSuchKey</Code><Message>No such key.</Message></Error>',
        "application/xml",
    ),
)

ELSEWHERE = (301, 307, 308)
"""Redirects that ask for the same request at another address, so that it was not processed."""


def _redirect(status: int, location: str) -> Response:
    return _text("redirect", status, "", location=location)


REDIRECTS_AFTERWARDS = (
    _redirect(303, "/api/v1/seq/acme/spelling/grade-3/jobs/exec-1"),
    _redirect(302, "https://login.test/"),
)
"""What may follow a request that was processed."""

REDIRECTS = (
    *REDIRECTS_AFTERWARDS,
    _redirect(301, "https://noukai.test/api/v2"),
    _redirect(307, "https://elsewhere.test/"),
    _redirect(308, "https://elsewhere.test/"),
)

ANOTHER_REQUEST = "service, to another request"
"""The origin of a response that answers another request."""


def _result_of_another(job_id: str | int) -> Response:
    value = {"executionId": job_id, "status": "completed", "result": {"answer": "exec-other"}}
    return _json(ANOTHER_REQUEST, 200, value)


OF_ANOTHER: Mapping[str, tuple[Response, ...]] = {
    "poll": (_result_of_another("exec-other"), _result_of_another(8_000_001)),
    "session": (
        _json(
            ANOTHER_REQUEST,
            200,
            {"sessionId": "5d3c1f3e-6f0a-4a37-9b59-0d7a7c6f2b11", "executions": []},
        ),
    ),
}
"""What a connection that is out of step brings: the response to another request."""

OVERLOADED = _json("Envoy", 503, {"message": "no healthy upstream"})
"""What all requests get in an outage. It does not say when to come again."""

GATEWAY_ERRORS = (
    _text("nginx", 502, _NGINX.format("502 Bad Gateway")),
    _text("nginx", 504, _NGINX.format("504 Gateway Time-out")),
    OVERLOADED,
    _text("load balancer", 503, _NGINX.format("503 Service Unavailable"), **{"retry-after": "3"}),
    _text("login page", 200, "<!doctype html><html><title>Sign in</title></html>"),
    _json("portal", 200, {"status": "ok"}),
)
