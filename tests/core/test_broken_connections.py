"""What a broken connection says about a request: whether the server can have received it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from noukai_core import SubmissionUnknownError, TransientError
from tests.core.scripted_server import FLOW

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient

Break = Callable[[socket.socket], None]

_RESET_WHEN_CLOSED = struct.pack("ii", 1, 0)


def hang_up(connection: socket.socket) -> None:
    """Close the connection in an orderly way."""
    connection.recv(65536)
    connection.close()


def reset(connection: socket.socket) -> None:
    """End the connection as a process does that crashes."""
    connection.recv(65536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_WHEN_CLOSED)
    connection.close()


def stop_in_the_headers(connection: socket.socket) -> None:
    """Start a response, and close the connection."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Ty")
    connection.close()


def stop_in_the_body(connection: socket.socket) -> None:
    """Announce the length of the response, and close the connection before its end."""
    connection.recv(65536)
    connection.sendall(b'HTTP/1.1 202 Accepted\r\nContent-Length: 900\r\n\r\n{"execu')
    connection.close()


def speak_something_else(connection: socket.socket) -> None:
    """Respond with something other than HTTP."""
    connection.recv(65536)
    connection.sendall(b"220 mail.test ESMTP\r\n")
    connection.close()


def say_nothing(connection: socket.socket) -> None:
    """Keep the connection open without a response."""
    connection.recv(65536)
    connection.recv(65536)
    connection.close()


A_WHILE = 0.3
"""Seconds that a client waits for a response that does not come."""

BREAKS = [hang_up, reset, stop_in_the_headers, stop_in_the_body, speak_something_else, say_nothing]


class Breaking:
    """Listens, and ends each connection in the same way."""

    def __init__(self, way: Break) -> None:
        self._way = way
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.port = self._socket.getsockname()[1]
        self.connected = threading.Event()
        self.met = 0

    def __enter__(self) -> Breaking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.met += 1
            self.connected.set()
            self._way(connection)


@pytest.fixture
def unheard() -> Iterator[int]:
    """A port without a listener."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize("way", BREAKS, ids=[way.__name__ for way in BREAKS])
def test_a_request_that_was_sent_may_have_been_processed(make_client: MakeClient, way: Break) -> None:
    """However the connection breaks after the request, a submission is not sent again without asking."""
    with Breaking(way) as server:
        client = make_client(
            base_url=f"http://127.0.0.1:{server.port}/api/v1",
            timeout=A_WHILE if way is say_nothing else 60,
            recovery_timeout=0,
        )
        with pytest.raises(SubmissionUnknownError):
            client.flow(FLOW).job("hello")
        client.close()
        assert server.connected.wait(60)
    assert server.met == 1


def test_a_connection_that_is_refused_carried_nothing(make_client: MakeClient, unheard: int) -> None:
    """Without a listener, no job can exist: the submission may be sent again."""
    client = make_client(base_url=f"http://127.0.0.1:{unheard}/api/v1", retry_timeout=0)
    with pytest.raises(TransientError) as caught:
        client.flow(FLOW).job("hello")
    assert caught.value.never_processed


def test_a_host_that_is_not_found_saw_nothing(make_client: MakeClient) -> None:
    """When the name leads nowhere, it is certain that there is no job."""
    client = make_client(base_url="https://noukai.invalid/api/v1", retry_timeout=0)
    with pytest.raises(TransientError) as caught:
        client.flow(FLOW).job("hello")
    assert caught.value.never_processed


def test_a_server_that_speaks_no_tls_saw_nothing(make_client: MakeClient) -> None:
    """Without an encrypted connection, no job can exist."""
    with Breaking(speak_something_else) as server:
        client = make_client(base_url=f"https://127.0.0.1:{server.port}/api/v1", retry_timeout=0)
        with pytest.raises(TransientError) as caught:
            client.flow(FLOW).job("hello")
        client.close()
    assert caught.value.never_processed
