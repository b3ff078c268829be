"""What the processes of local servers rest on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from devtools import processes
from devtools.processes import free_port

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
