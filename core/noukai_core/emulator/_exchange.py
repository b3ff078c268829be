"""How each request is handled: it is logged, faults apply, its key is checked, its response is sent."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from noukai_core.emulator._fault_responses import Dropped, faulty_response, rejected
from noukai_core.emulator._faults import Call, Fault
from noukai_core.emulator._request_log import Entry
from noukai_core.emulator._responses import RejectionError, unauthorised
from noukai_core.emulator._service import Service

API_PATH = "/api/v1"
SLOW_SECONDS = 5.0


@dataclass(slots=True)
class Exchange:
    """One request while it is handled."""

    request: Request
    entry: Entry
    subject: str
    fault: Fault | None


Handler = Callable[[Exchange], Awaitable[Response]]


def route(service: Service, kind: str, path: str, handler: Handler, method: str = "GET") -> Route:
    """Return the route of one call of the API."""

    async def endpoint(request: Request) -> Response:
        entry = _arrived(service, kind, request)
        call = await _call(service, kind, request)
        fault = service.faults.affecting(call)
        response = await _respond(handler, Exchange(request, entry, call.subject, fault))
        if fault is not None:
            entry.fault = fault.kind
            if fault.kind == "slow":
                await service.changes.pause(fault.options.get("seconds", SLOW_SECONDS))
            response = faulty_response(fault, kind, response)
        return _sent(service, entry, response)

    return Route(path, endpoint, methods=[method])


def unrouted(service: Service) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return the handler of requests without a route, which responds as FastAPI does."""

    async def respond(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = JSONResponse({"detail": error.detail}, error.status_code, error.headers)
        if not request.scope["path"].startswith(API_PATH):
            return response
        return _sent(service, _arrived(service, "other", request), response)

    return respond


def _arrived(service: Service, kind: str, request: Request) -> Entry:
    entry = Entry(
        kind=kind,
        method=request.method,
        path=request.scope["path"],
        headers=request.scope["headers"],
        at=service.now(),
        job_id=request.path_params.get("job_id"),
    )
    service.log.arrived(entry)
    return entry


async def _call(service: Service, kind: str, request: Request) -> Call:
    """Describe what a request concerns, in terms that are equal in every run with the same submissions."""
    parts = request.path_params
    flow = "/".join(parts[name] for name in ("org", "project", "slug")) if "slug" in parts else None
    name = parts.get("job_id") or parts.get("session_id") or ""
    subject = service.subjects.get(name, name)
    if kind == "submit":
        subject = f"{flow}/{hashlib.sha256(await request.body()).hexdigest()}"
        if session_id := request.headers.get("X-Session-Id"):
            service.subjects[session_id] = subject
    return Call(kind, flow, parts.get("job_id"), subject)


async def _respond(handler: Handler, exchange: Exchange) -> Response | None:
    if exchange.fault is not None and not exchange.fault.takes_effect:
        return None
    try:
        _check_key(exchange.request)
        return await handler(exchange)
    except RejectionError as rejection:
        return rejected(rejection)


def _check_key(request: Request) -> None:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise unauthorised("The API key is missing.")
    if not key.startswith("nk_"):
        raise unauthorised("The API key is not known.")


def _sent(service: Service, entry: Entry, response: Response | None) -> Response:
    assert response is not None  # only a fault that has its own response bypasses the handler
    entry.request_id = f"req_{uuid4().hex}"
    response.headers["X-Request-ID"] = entry.request_id
    service.log.responded(entry, None if isinstance(response, Dropped) else response.status_code)
    return response
