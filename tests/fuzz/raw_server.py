"""A server on a real socket that sends what it likes, whether or not that is HTTP."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Self

DRIP_SECONDS = 0.02


class ServerAction(Enum):
    """What a server does between the bytes that it sends."""

    PAUSE = "let a moment pass"
    RESET = "reset the connection"


Chunks = Iterable[bytes | ServerAction]
Respond = Callable[[bytes], Chunks]
"""What comes back for the beginning of a request."""

_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_BLOCK = 64 * 1024


class RawServer:
    """Sends what `respond` gives to the first request of each connection, and then nothing."""

    def __init__(self, response: Respond) -> None:
        self.response = response
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._thread = threading.Thread(target=self._accept)
        self._ending = threading.Event()

    @property
    def base_url(self) -> str:
        """The `base_url` for a client."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/api/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        served: list[threading.Thread] = []
        while not self._ending.is_set():
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                served.append(threading.Thread(target=self._serve, args=(connection,)))
                served[-1].start()
        for thread in served:
            thread.join()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(0.2)
            for chunk in self.response(self._request(connection)):
                if self._ending.is_set():
                    return
                if chunk is ServerAction.PAUSE:
                    self._ending.wait(DRIP_SECONDS)
                elif chunk is ServerAction.RESET:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                else:
                    self._send(connection, chunk)
            self._keep_silent(connection)

    def _request(self, connection: socket.socket) -> bytes:
        """Receive the beginning of a request. A busy client may send it long after it has connected."""
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                return connection.recv(_BLOCK)
        return b""

    def _send(self, connection: socket.socket, chunk: bytes) -> None:
        while chunk and not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                chunk = chunk[connection.send(chunk) :]

    def _keep_silent(self, connection: socket.socket) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                if not connection.recv(_BLOCK):
                    return


def _for_ever(begin: bytes, again: bytes) -> Respond:
    return lambda _: itertools.chain([begin], itertools.repeat(again))


def _in_drops(begin: bytes, again: bytes) -> Respond:
    return lambda _: itertools.chain([begin], itertools.cycle([ServerAction.PAUSE, again]))


def _bomb() -> Respond:
    """A body whose every kilobyte unpacks to a megabyte."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    begin = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(16_000_000)) + packer.flush(zlib.Z_FULL_FLUSH)
    return _for_ever(_OK + b"Content-Encoding: gzip\r\n\r\n" + begin, again)


ENDLESS: dict[str, Respond] = {
    "silence": lambda _: (),
    "bytes that are no HTTP": _for_ever(b"SSH-2.0-OpenSSH_9.2\r\n", bytes(range(256)) * 256),
    "status line": _for_ever(b"HTTP/1.1 200 ", b"O" * _BLOCK),
    "header": _for_ever(_OK + b"X-A: ", b"a" * _BLOCK),
    "headers": _for_ever(_OK, b"X-A: a\r\n" * 9000),
    "interim responses": _for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2500),
    "body": _for_ever(_OK + b"\r\n", b"x" * _BLOCK),
    "body of a great length": _for_ever(_OK + b"Content-Length: 99999999999999999999\r\n\r\n", b"x" * _BLOCK),
    "chunks": _for_ever(_CHUNKED, b"1\r\nx\r\n" * 10_000),
    "chunk's length": _for_ever(_CHUNKED, b"0" * _BLOCK),
    "chunk's extension": _for_ever(_CHUNKED + b"1;", b"x" * _BLOCK),
    "trailers": _for_ever(_CHUNKED + b"0\r\n", b"X-A: a\r\n" * 9000),
    "bomb": _bomb(),
    "status line in drops": _in_drops(b"HTTP/1.1 200 ", b"O"),
    "headers in drops": _in_drops(_OK, b"X-A: a\r\n"),
    "interim responses in drops": _in_drops(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body in drops": _in_drops(_OK + b"\r\n", b"x"),
    "chunk's length in drops": _in_drops(_CHUNKED, b"0"),
    "chunks in drops": _in_drops(_CHUNKED, b"1\r\nx\r\n"),
}
"""Responses that never end, or never begin."""
