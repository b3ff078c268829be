"""The network between clients and a server on this machine, which a test can cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, Self

from devtools.processes import free_port

CUTS = ("refused", "silent")
"""The ways in which a network is cut: nobody listens any more, or nothing comes through."""

_HOST = "127.0.0.1"
_CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)


class Network:
    """Carries every connection to its port on to a server, until it is cut.

    Args:
        server_port: Where the server listens.
    """

    def __init__(self, server_port: int) -> None:
        self.port = free_port()
        self._server_port = server_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network")
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        # Bound, so that no other process gets the port while it has no listener.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind((_HOST, self.port))

    def __enter__(self) -> Self:
        self._thread.start()
        self.restore()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cut("refused")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._place.close()

    def cut(self, how: str) -> None:
        """Cut the network in one of the `CUTS`."""
        self._run(self._refuse() if how == "refused" else self._hold())

    def restore(self) -> None:
        """Let everything through; what was held back arrives late."""
        self._run(self._let_through())

    @contextlib.contextmanager
    def flickering(self, every: float, for_seconds: float) -> Iterator[None]:
        """Refuse all connections for a moment, repeatedly."""
        over = threading.Event()

        def flicker() -> None:
            while not over.wait(every):
                self.cut("refused")
                over.wait(for_seconds)
                self.restore()

        thread = threading.Thread(target=flicker, name="flickering network")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _run(self, step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result()

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        ending = [*self._connections]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _hold(self) -> None:
        self._flows.clear()

    async def _let_through(self) -> None:
        self._flows.set()
        if self._listener is None:
            self._listener = socket.create_server((_HOST, self.port), backlog=1024)
            self._listener.setblocking(False)
            # `sock_accept()` loses a connection if it is cancelled between the accept and its return.
            self._loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):  # the client has gone meanwhile
            self._connect(listener.accept()[0])

    def _connect(self, client: socket.socket) -> None:
        client.setblocking(False)

        def ended(connection: asyncio.Task[None]) -> None:
            self._connections.discard(connection)
            client.close()

        connection = self._loop.create_task(self._join(client))
        self._connections.add(connection)
        connection.add_done_callback(ended)

    async def _join(self, client: socket.socket) -> None:
        """Carry everything between a client and the server, until one of them ends or breaks it."""
        ways: list[asyncio.Task[None]] = []
        in_order = False
        with socket.socket() as server:
            server.setblocking(False)
            try:
                await self._flows.wait()
                await self._loop.sock_connect(server, (_HOST, self._server_port))
                ways += (
                    self._loop.create_task(self._carry(*ends))
                    for ends in ((client, server), (server, client))
                )
                done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                in_order = all(way.exception() is None for way in done)
            except OSError:  # no listener
                pass
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                if not in_order:
                    for end in (client, server):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    async def _carry(self, source: socket.socket, target: socket.socket) -> None:
        while data := await self._loop.sock_recv(source, _CHUNK):
            await self._flows.wait()
            await self._loop.sock_sendall(target, data)
        await self._flows.wait()
