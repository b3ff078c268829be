"""What a request gets when a fault affects it: a response cut off or replaced, or none."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from noukai_core.emulator._faults import Fault
from noukai_core.emulator._responses import RejectionError, no_such, unauthorised

# The scope's key for the transport, so that a response can break its connection.
TRANSPORT = "noukai.transport"

_NOT_FOUND = {"submit": "flow", "session": "session", "trace": "run", "stream": "run"}
_HUGE_BYTES = 10 * 1024 * 1024
_HTML = "<html><head><title>{0}</title></head><body><h1>{0}</h1></body></html>"


class ConnectionDroppedError(Exception):
    """Replaces a dropped connection where the application runs in its caller's process."""


class Dropped(Response):
    """No response: the connection is closed, or reset."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self._reset = reset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Break the connection."""
        _break(scope, reset=self._reset)
        while (await receive())["type"] != "http.disconnect":
            pass


class Truncated(Response):
    """A response that is shorter than its headers announce."""

    def __init__(self, whole: Response) -> None:
        super().__init__(whole.body, whole.status_code, dict(whole.headers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the first half, and close the connection."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        half = bytes(self.body)[: len(self.body) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})
        _break(scope, reset=False)
        while (await receive())["type"] != "http.disconnect":
            pass


def rejected(rejection: RejectionError) -> Response:
    """Return the response for a rejection."""
    return JSONResponse(rejection.body, rejection.status, rejection.headers)


def faulty_response(fault: Fault, kind: str, response: Response | None) -> Response | None:
    """Return the response to a request that a fault affects: another one, or the same."""
    options = fault.options
    match fault.kind:
        case "drop_before" | "drop_after":
            return Dropped(reset=bool(options.get("reset", False)))
        case "truncated" if response is not None:
            streamed = isinstance(response, StreamingResponse)
            return Dropped(reset=False) if streamed else Truncated(response)
        case "status":
            return _status(options)
        case "nonsense":
            body = options.get("body", "nonsense")
            content_type = options.get("content_type", "application/json")
            return Response(body, options.get("status", 200), media_type=content_type)
        case "not_found":
            return rejected(no_such(_NOT_FOUND.get(kind, "job")))
        case "no_cancel":
            status = options.get("status", 405)
            return JSONResponse({"detail": "Method Not Allowed" if status == 405 else "Not Found"}, status)
        case "expired_key":
            return rejected(unauthorised("The API key has expired."))
        case "redirect":
            location = options.get("location", "https://elsewhere.invalid/")
            return Response(status_code=options.get("status", 307), headers={"Location": location})
        case _:
            return response


async def faulty_events(
    events: AsyncIterator[str], fault: Fault | None, stall: Callable[[], Awaitable[object]]
) -> AsyncIterator[str]:
    """Yield the events of a live trace as a fault of the kind `stream` lets them through.

    Args:
        events: The events.
        fault: The fault that affects the request.
        stall: Waits until the emulator stops.
    """
    options = fault.options if fault is not None and fault.kind == "stream" else {}
    then, after, sent = options.get("then"), options.get("after", 1), 0
    async for event in events:
        yield event
        sent += 1
        if then == "repeat":
            yield event
        elif then is not None and sent == after:
            if then == "huge":
                yield f"event: step_output\ndata: {'x' * options.get('bytes', _HUGE_BYTES)}\n\n"
                continue
            if then == "stall":
                await stall()
            return


def _status(options: dict[str, Any]) -> Response:
    status = options.get("status", 500)
    headers: dict[str, str] = {}
    after = options.get("retry_after")
    if after == "http-date":
        # A date has whole seconds: rounded up, so that the pause is never shorter.
        headers["Retry-After"] = formatdate(math.ceil(time.time() + options.get("seconds", 2)), usegmt=True)
    elif after is not None:
        headers["Retry-After"] = str(after)
    if options.get("body") == "html":
        return Response(_HTML.format(status), status, headers, media_type="text/html")
    if status == 401:
        return rejected(unauthorised("The API key was refused."))
    code = options.get("code", "RATE_LIMITED" if status == 429 else "INTERNAL_ERROR")
    message = options.get("message", f"A fault of the emulator responds {status}.")
    return JSONResponse({"detail": {"code": code, "message": message}}, status, headers)


def _break(scope: Scope, *, reset: bool) -> None:
    transport: asyncio.Transport | None = scope.get(TRANSPORT)
    if transport is None:
        raise ConnectionDroppedError("the emulator dropped the connection")
    if reset:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()
