"""Whether this process received a SIGTERM, even if its exception was lost.

Prefect's handler raises an exception wherever the main thread is. In a callback of an event loop, in a
finalizer, or in a task that nobody awaits, Python reports the exception and goes on. The flow run then waits
until Prefect kills it, 30 s later. The handler must stay in place: Prefect checks that it is there.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress


@contextmanager
def termination_noted() -> Generator[None, None, None]:
    """Note each SIGTERM from here to the end of the block. Other threads than the main one note nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _noted.enter()
    try:
        yield
    finally:
        _noted.leave()


def was_terminated() -> bool:
    """Return whether a SIGTERM has come since the outermost block was entered."""
    return _noted.check()


class _Signals:
    """The numbers of the signals that have come, as the interpreter writes them to a socket."""

    def __init__(self) -> None:
        self._blocks = 0
        self._terminated = False
        self._sockets: tuple[socket.socket, socket.socket] | None = None

    def enter(self) -> None:
        self._blocks += 1
        if self._blocks == 1:
            self._open()

    def leave(self) -> None:
        self._blocks -= 1
        if self._blocks == 0:
            self._close()

    def check(self) -> bool:
        sockets = self._sockets  # the main thread may close them while another one asks
        if sockets is not None and not self._terminated:
            with suppress(OSError):
                self._terminated = signal.SIGTERM in sockets[0].recv(4096)
        return self._terminated

    def disown(self) -> None:
        """Leave the signals of a forked child to itself: it shares the sockets with its parent."""
        self._blocks = 0
        self._close()

    def _open(self) -> None:
        self._terminated = False
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        earlier = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        if earlier == -1:
            self._sockets = reader, writer
            return
        # The program's own event loop handles signals, and needs them itself.
        signal.set_wakeup_fd(earlier)
        reader.close()
        writer.close()

    def _close(self) -> None:
        if self._sockets is None:
            return
        reader, writer = self._sockets
        self._sockets = None
        current = signal.set_wakeup_fd(-1)
        if current != writer.fileno():
            signal.set_wakeup_fd(current)
        reader.close()
        writer.close()


_noted = _Signals()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_noted.disown)
