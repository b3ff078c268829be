"""`Emulator`: the service on a socket, in a background thread."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from noukai_core.emulator._control import EmulatorControl
from noukai_core.emulator._control_routes import control_routes
from noukai_core.emulator._exchange import API_PATH, unrouted
from noukai_core.emulator._fault_responses import TRANSPORT
from noukai_core.emulator._guard import LocalOnly, is_loopback
from noukai_core.emulator._job_store import JobStore
from noukai_core.emulator._routes import api_routes
from noukai_core.emulator._script import Script
from noukai_core.emulator._service import Service

# Clients poll up to a minute apart, over the same connection.
_KEEP_ALIVE_SECONDS = 300
_BACKLOG = 2048


class Emulator:
    """A local Noukai over real HTTP: a context manager that listens while it is entered.

    Args:
        script: How jobs behave, by flow: a mapping or a JSON file. See `noukai_core.emulator`.
        state_file: A file that keeps the jobs across restarts. By default they are forgotten.
        host: The address to listen on. By default only this machine can connect.
        port: The port; 0 picks a free one.
        tls_cert: A certificate (PEM); serves HTTPS.
        tls_key: The certificate's key (PEM), unless the certificate's file contains it.
        honour_idempotency_key: Whether a second submission with the same `Idempotency-Key` returns the first
            one's job. The service does not document this.
        clock: Returns the time in seconds since the epoch. A test can pass a clock that it moves itself.

    Raises:
        ValueError: The script or the state file is not valid.
        OSError: The address is in use, or a file cannot be read.
    """

    def __init__(
        self,
        script: Mapping[str, Any] | str | Path | None = None,
        *,
        state_file: str | Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
        honour_idempotency_key: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not is_loopback(host):
            warnings.warn(
                f"The emulator listens on {host}: others on the network can read its jobs", stacklevel=2
            )
        self._address = (host, port)
        self._tls = (tls_cert, tls_key)
        initial_script = Script.read(script)
        self._jobs = JobStore(Path(state_file) if state_file else None, clock)
        self._service = Service(
            self._jobs, initial_script, clock, honours_idempotency_key=honour_idempotency_key
        )
        self.app = Starlette(
            routes=[*api_routes(self._service), *control_routes(self._service)],
            exception_handlers={HTTPException: unrouted(self._service)},
        )
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._base_url: str | None = None
        self._control: EmulatorControl | None = None

    @property
    def base_url(self) -> str:
        """The `base_url` for a client."""
        if self._base_url is None:
            raise RuntimeError("the emulator is not running; enter it first: `with Emulator() as emulator:`")
        return self._base_url

    @property
    def control(self) -> EmulatorControl:
        """The control API of this emulator."""
        if self._control is None:
            cert = self._tls[0]
            verify = ssl.create_default_context(cafile=cert) if cert else True
            self._control = EmulatorControl(self.base_url, verify=verify)
        return self._control

    def __enter__(self) -> Emulator:
        if self._server is not None:
            raise RuntimeError("an emulator can be entered only once; create another one")
        try:
            config = self._config()
            config.load()
            listener = _listen(*self._address)
        except BaseException:
            self.close()
            raise
        host, port = listener.getsockname()[:2]
        self._server = server = _Server(config, self._service)
        self._thread = threading.Thread(
            target=server.run, args=([listener],), name="noukai-emulator", daemon=True
        )
        self._thread.start()
        server.ready.wait()
        if not server.started:
            raise RuntimeError("the emulator did not start; the reason is in the log")
        scheme, name = "https" if self._tls[0] else "http", f"[{host}]" if ":" in host else host
        self._base_url = f"{scheme}://{name}:{port}{API_PATH}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server, and close the state file."""
        if self._control is not None:
            self._control.close()
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
        self._jobs.close()

    def _config(self) -> uvicorn.Config:
        cert, key = self._tls
        connections: Any = _connection  # uvicorn declares a class, but only calls it
        return uvicorn.Config(
            LocalOnly(self.app, self._address[0]),
            http=connections,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=2,
            backlog=_BACKLOG,
            ssl_certfile=cert,
            ssl_keyfile=key,
        )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self.ready = threading.Event()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            super().run(sockets)
        finally:
            self.ready.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.changes.stop()
        await super().shutdown(sockets)


def _connection(**settings: Any) -> asyncio.Protocol:
    """Return a connection that the application can break, because some faults act below HTTP."""
    protocol: Any = AutoHTTPProtocol(**settings)
    protocol.access_log = False  # Airflow configures uvicorn's logger, and would turn it on again
    app = protocol.app

    async def with_transport(scope: Scope, receive: Receive, send: Send) -> None:
        scope[TRANSPORT] = protocol.transport
        await app(scope, receive, send)

    protocol.app = with_transport
    made: asyncio.Protocol = protocol
    return made


def _listen(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
