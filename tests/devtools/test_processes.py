"""What the processes of local servers rest on."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from devtools import processes
from devtools.processes import IDLE_CONNECTIONS, Component, free_port, wait_until

_KEPT = 1
_SERVER = f"""
import sys, uvicorn

async def respond(scope, receive, send):
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}})
    await send({{"type": "http.response.body"}})

uvicorn.run(respond, port=int(sys.argv[1]), lifespan="off", timeout_keep_alive={_KEPT})
"""
_GIVEN_AWAY = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.mark.skipif(not _GIVEN_AWAY.exists(), reason="this system does not tell which ports it gives away")
def test_a_free_port_is_given_to_nobody_else() -> None:
    """A port that a server will bind is not among those that the system gives to others meanwhile."""
    lowest = int(_GIVEN_AWAY.read_text().split()[0])
    if lowest < 32_000:
        pytest.skip(f"this system gives away the ports from {lowest:,} on")
    assert all(free_port() < lowest for _ in range(100))


def test_a_port_on_which_somebody_listens_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server is told to bind a port that another one has."""
    taken = free_port()
    other = next(port for port in iter(free_port, None) if port != taken)
    monkeypatch.setattr(processes, "_PORTS", (taken, other))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        assert {free_port() for _ in range(50)} == {other}


def test_a_server_that_is_held_up(tmp_path: Path) -> None:
    """A request to a server that a busy machine holds up for longer than it keeps connections is answered."""
    port = free_port()
    server = Component(
        "server", [sys.executable, "-c", _SERVER, str(port)], dict(os.environ), tmp_path / "log"
    )
    limits = httpx.Limits(max_keepalive_connections=IDLE_CONNECTIONS)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, limits=limits) as client:

        def responds() -> bool:
            try:
                return client.get("/").is_success
            except httpx.TransportError:
                return False

        server.start()
        try:
            wait_until(responds, "the server")
            time.sleep(0.2)  # until the server measures the time; sooner, the test proves less
            server.stall()
            held_up = threading.Timer(2 * _KEPT, server.resume)
            held_up.start()
            assert client.get("/", timeout=60).is_success
            held_up.join()
        finally:
            server.kill()
