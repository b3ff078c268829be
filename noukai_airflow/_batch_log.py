"""The log in which a batch records its jobs and outcomes, in the task state store or in the output folder.

Rows are only ever appended. They are kept in numbered chunks, since a value of the task state store should
stay below 64 kB, and since an object storage cannot append to a file.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

from noukai_airflow._job_store import never_expire
from noukai_airflow._storage import accessing, files_in, write_text
from noukai_airflow._xcom_values import MOST_LEVELS, as_xcom

if TYPE_CHECKING:
    from airflow.sdk import Context, ObjectStoragePath

    from noukai_airflow._job_store import Store
    from noukai_core.batch_record import Row

_KEY = "noukai_batch"
_FOLDER = "_noukai"
_CHUNK = re.compile(r"[0-9]{9,}-([0-9a-f]{8})-[0-9a-f]{8}\.jsonl", re.ASCII)

# There is a small file for each group of submissions, and each costs an object storage a round trip. They are
# not merged: a storage that allows a write per second to an object would refuse to replace one so often.
_CONCURRENT_READS = 16

_LEVELS_OF_ROW = 10

# Airflow warns of values above 64 kB.
_CHUNK_BYTES = 60_000


class BatchLog(Protocol):
    """Where the rows of one batch are kept, and the header, which says which batch it is."""

    def header(self) -> dict[str, Any] | None:
        """Return the header, or `None` if there is none or it is malformed."""
        ...

    def write_header(self, header: Mapping[str, Any]) -> None:
        """Replace the header."""
        ...

    def rows(self) -> Iterator[Row]:
        """Read the rows, oldest first."""
        ...

    def append(self, rows: list[Row]) -> None:
        """Append rows. They are durable when this returns."""
        ...

    def clear(self) -> None:
        """Delete all rows."""
        ...


class StateStoreLog:
    """A log in Airflow's task state store, which outlives retries.

    Each try writes chunks of its own, so that two that are alive at the same time replace nothing of each
    other, and reads those of all tries since the batch began.

    Args:
        store: The store of the running task.
        try_number: The try.
    """

    def __init__(self, store: Store, try_number: int) -> None:
        self._store = store
        self._try = try_number
        self._chunk = 0
        self._rows: list[Row] = []
        self._size = 0

    def header(self) -> dict[str, Any] | None:
        stored = self._store.get(_KEY)
        return cast("dict[str, Any]", stored) if isinstance(stored, dict) else None

    def write_header(self, header: Mapping[str, Any]) -> None:
        self._store.set(_KEY, dict(header), retention=never_expire())

    def rows(self) -> Iterator[Row]:
        for try_number in self._tries():
            self._chunk, self._rows = 0, []
            while isinstance(chunk := self._store.get(_key(try_number, self._chunk + 1)), list):
                self._chunk += 1
                self._rows = [row for row in cast("list[Any]", chunk) if isinstance(row, dict)]  # type: ignore[redundant-cast]
                yield from self._rows
        self._size = sum(map(_size, self._rows))

    def append(self, rows: list[Row]) -> None:
        for row in (_storable(row) for row in rows):
            size = _size(row)
            if self._chunk == 0 or self._size + size > _CHUNK_BYTES:
                self._write()
                self._chunk, self._rows, self._size = self._chunk + 1, [], 0
            self._rows.append(row)
            self._size += size
        self._write()

    def clear(self) -> None:
        for try_number in self._tries():
            number = 1
            while self._store.get(key := _key(try_number, number)) is not None:
                self._store.delete(key)
                number += 1
        self._chunk, self._rows, self._size = 0, [], 0

    def _write(self) -> None:
        if self._rows:
            key = _key(self._try, self._chunk)
            self._store.set(key, list(self._rows), retention=never_expire())

    def _tries(self) -> Iterable[int]:
        """Return the tries whose rows count, this one last."""
        first = (self.header() or {}).get("first_try")
        return range(min(first, self._try) if isinstance(first, int) else 1, self._try + 1)


def _storable(row: Row) -> Row:
    # An output in it may have as many levels as one alone.
    stored: Row = as_xcom(row, most_levels=MOST_LEVELS + _LEVELS_OF_ROW)[0]
    return stored


def _key(try_number: int, chunk: int) -> str:
    return f"{_KEY}_{try_number}_{chunk}"


class TemporaryStore:
    """Stands in for the task state store where nothing needs to outlive the task's process."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self._values[key] = value

    def delete(self, key: str) -> None:
        self._values.pop(key, None)


def task_state_store(context: Context) -> Store | None:
    """Return the task state store of the running task, which Airflow has since 3.3."""
    return cast("dict[str, Any]", context).get("task_state_store")


class FolderLog:
    """A log in files below the output folder of a batch, which every version of Airflow can keep.

    Two tries that are alive at the same time write different files, and each reads those of both. The names
    of the files have a part that is the same for one batch, and in its header: what a suspended try writes
    after a user has cleared the task does not belong to the new batch.

    Args:
        path: The output folder.
    """

    def __init__(self, path: ObjectStoragePath) -> None:
        self._path = path / _FOLDER
        self._writer = secrets.token_hex(4)
        self._name = ""
        self._chunk = 0

    def header(self) -> dict[str, Any] | None:
        with accessing(self._path, "read"):
            try:
                stored = json.loads((self._path / "batch.json").read_bytes())
            except (FileNotFoundError, ValueError, RecursionError):  # malformed if a kill cut it off
                return None
        if not isinstance(stored, dict):
            return None
        header = cast("dict[str, Any]", stored)
        self._name = self._name or str(header.get("log_name", ""))
        return header

    def write_header(self, header: Mapping[str, Any]) -> None:
        self._name = self._name or self._last_name() or secrets.token_hex(4)
        self._write("batch.json", json.dumps({**header, "log_name": self._name}))

    def rows(self) -> Iterator[Row]:
        with (
            accessing(self._path, "read"),
            ThreadPoolExecutor(_CONCURRENT_READS, thread_name_prefix="noukai-batch-log") as pool,
        ):
            files = self._files()
            self._chunk = max((_number_of(file) for file in files), default=0)
            for text in pool.map(_text_of, files):
                yield from _parsed(text)

    def append(self, rows: list[Row]) -> None:
        # The number counts even if the file cannot be written, so that no later one replaces half of it.
        self._chunk += 1
        self._name = self._name or secrets.token_hex(4)
        name = f"{self._chunk:09}-{self._name}-{self._writer}.jsonl"
        self._write(name, "".join(f"{json.dumps(row)}\n" for row in rows))

    def clear(self) -> None:
        with accessing(self._path, "emptied"):
            for file in self._files():
                with suppress(FileNotFoundError):  # another try has deleted it
                    file.unlink()
        self._name, self._chunk = secrets.token_hex(4), 0

    def _files(self) -> list[ObjectStoragePath]:
        names = ((file, _name_in(file)) for file in files_in(self._path))
        return [file for file, name in names if name is not None and self._name in ("", name)]

    def _last_name(self) -> str | None:
        """Return the name of the batch whose header has been lost, if there is one."""
        with accessing(self._path, "read"):
            files = self._files()
        return _name_in(files[-1]) if files else None

    def _write(self, name: str, text: str) -> None:
        with accessing(self._path, "written"):
            self._path.mkdir(parents=True, exist_ok=True)
            write_text(self._path / name, text)


def _name_in(file: ObjectStoragePath) -> str | None:
    match = _CHUNK.fullmatch(file.name)
    return None if match is None else match[1]


def _number_of(file: ObjectStoragePath) -> int:
    return int(file.name.partition(".")[0].partition("-")[0])


def _text_of(file: ObjectStoragePath) -> str:
    # A write that was cut off may end inside of a character.
    return file.read_bytes().decode(errors="replace")


def _parsed(text: str) -> Iterator[Row]:
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # what was cut off was never durable, and nothing was sent on its account
        if isinstance(row, dict):
            yield cast("Row", row)


def _size(row: Row) -> int:
    return len(json.dumps(row)) + 2
