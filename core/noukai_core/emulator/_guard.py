"""Refuses requests that a web page could make a browser on this machine send."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class LocalOnly:
    """Checks the `Host` and the `Origin` of each request.

    A page whose name resolves to this machine (DNS rebinding), and any page that posts to it, could otherwise
    read jobs and control the emulator.

    Args:
        app: What handles the requests that pass.
        host: The address that the emulator listens on: its name is allowed as well.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._host = host
        self._listens_beyond = not is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or refuse it with a 403."""
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if self._allowed(headers.get("host", "")) and (
            origin is None or self._allowed(urlsplit(origin).netloc)
        ):
            await self._app(scope, receive, send)
            return
        detail = {"code": "FORBIDDEN", "message": "The emulator does not serve this Host or Origin."}
        await JSONResponse({"detail": detail}, 403)(scope, receive, send)

    def _allowed(self, netloc: str) -> bool:
        try:
            parts = urlsplit(f"//{netloc}")
        except ValueError:
            return False
        if parts.netloc != netloc or "@" in netloc:  # older Starlettes would route by a path in it
            return False
        name = parts.hostname or ""
        return is_loopback(name) or name == self._host or (self._listens_beyond and _is_address(name))


def is_loopback(host: str) -> bool:
    """Tell whether a name or an address means this machine."""
    return host in ("localhost", "testserver") or (
        _is_address(host) and ipaddress.ip_address(host).is_loopback
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
