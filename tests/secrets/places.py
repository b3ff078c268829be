"""Where a text may have been written: each place by its name, with its content."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.fernet import Fernet, InvalidToken

from devtools.processes import Component, descendants

Place = tuple[str, bytes]

_TOKEN = re.compile(rb"gAAAA[\w-]{90,}={0,2}")
_SAMPLE_SECONDS = 0.1


def cells(database: Path, fernet: Fernet | None) -> Iterator[Place]:
    """Name every cell of a database `table.column`; what is encrypted or compressed in it comes once more."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.text_factory = bytes
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            rows = connection.execute(f'SELECT * FROM "{table.decode()}"')
            columns = [column[0] for column in rows.description]
            for row in rows:
                for column, value in zip(columns, row, strict=True):
                    data = value if isinstance(value, bytes) else str(value).encode()
                    for layer in _layers(data, fernet):
                        yield f"{table.decode()}.{column}", layer


def pages(database: Path) -> Iterator[Place]:
    """List the files of a database: their bytes also show what was deleted."""
    yield from files(database.parent, only=lambda file: file.name.startswith(database.name))


def files(folder: Path, *, only: Callable[[Path], bool] = lambda file: True) -> Iterator[Place]:
    """Name every file below a folder."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and only(file):
            yield str(file.relative_to(folder)), file.read_bytes()


def _layers(data: bytes, fernet: Fernet | None) -> Iterator[bytes]:
    yield data
    if fernet is not None:
        for token in _TOKEN.findall(data):
            with contextlib.suppress(InvalidToken):
                yield fernet.decrypt(token)
    with contextlib.suppress(zlib.error):
        yield zlib.decompress(data)


class Processes:
    """Records the arguments and the environment of processes, and of their children, while it is open.

    Args:
        components: The components, by name; more may be added.
    """

    def __init__(self, components: Mapping[str, Component]) -> None:
        self._components = components
        self._seen: set[Place] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def places(self) -> set[Place]:
        """What was seen, under the names `arguments` and `environment`."""
        return set(self._seen)

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            for component in list(self._components.values()):
                if component.running:
                    for pid in (component.pid, *descendants(component.pid)):
                        self._record(pid)

    def _record(self, pid: int) -> None:
        for name, file in (("arguments", "cmdline"), ("environment", "environ")):
            with contextlib.suppress(OSError):
                self._seen.add((name, Path(f"/proc/{pid}/{file}").read_bytes()))
