"""What the processes of local servers rest on."""

from __future__ import annotations

import socket

from devtools.processes import free_port


def test_a_free_port_is_given_to_nobody_else() -> None:
    """A port that a server will bind is not among those that the system gives to others meanwhile."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        assert all(free_port() < listener.getsockname()[1] for _ in range(100))
