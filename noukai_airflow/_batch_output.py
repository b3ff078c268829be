"""The outcomes of a batch as JSONL files in a folder, so that nothing large goes through XComs."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from noukai_airflow.exceptions import NoukaiPermanentException

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

_MAX_ROWS = 1_000
_MAX_BYTES = 8 * 1024 * 1024
_MAX_SECONDS = 30.0

_FAILED = "failed.jsonl"


class OutputFolder:
    """Writes `part-00001.jsonl` and so on, with the completed jobs, and `failed.jsonl` with the others.

    A part is complete as soon as it is visible. A part that was written just before a crash is written again,
    with the same name.

    Args:
        path: The folder.
        part: The number of the last part that counts.
    """

    def __init__(self, path: ObjectStoragePath, part: int = 0) -> None:
        self.path = path
        self.part = part
        self._lines: list[str] = []
        self._size = 0
        self._oldest = 0.0

    def remove_files(self) -> None:
        """Delete what an earlier run of the same task has written."""
        with self._explained():
            for file in [*self._files("part-*.jsonl"), *self._files(_FAILED)]:
                file.unlink()

    def is_empty(self) -> bool:
        """Return whether there are no outcomes in the folder."""
        with self._explained():
            return not (self._files("part-*.jsonl") or self._files(_FAILED))

    def check_writable(self) -> None:
        """Write and delete a file, before anything is paid for.

        Raises:
            NoukaiPermanentException: That is not possible.
        """
        with self._explained():
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / "_noukai.tmp"
            probe.write_text("")
            probe.unlink()

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a completed job to the next part."""
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
        if not self._lines:
            self._oldest = time.monotonic()
        self._lines.append(line)
        self._size += len(line)

    def is_due(self) -> bool:
        """Return whether the next part is large or old enough to be written."""
        return bool(self._lines) and (
            len(self._lines) >= _MAX_ROWS
            or self._size >= _MAX_BYTES
            or time.monotonic() - self._oldest >= _MAX_SECONDS
        )

    def flush(self) -> None:
        """Write the next part, if there is anything in it."""
        if not self._lines:
            return
        with self._explained():
            self._write(f"part-{self.part + 1:05}.jsonl", self._lines)
        self.part += 1
        self._lines, self._size = [], 0

    def write_failed(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all jobs that did not complete. Without any, there is no such file."""
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
        with self._explained():
            if lines:
                self._write(_FAILED, lines)
            elif (file := self.path / _FAILED).exists():
                file.unlink()

    def _write(self, name: str, lines: list[str]) -> None:
        target = self.path / name
        text = "".join(f"{line}\n" for line in lines)
        if self.path.protocol != "file":
            target.write_text(text, encoding="utf-8")  # an object appears when it is complete
            return
        unfinished = self.path / f"{name}.tmp"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(target)

    def _files(self, pattern: str) -> list[ObjectStoragePath]:
        return list(self.path.glob(pattern)) if self.path.is_dir() else []

    @contextlib.contextmanager
    def _explained(self) -> Any:
        try:
            yield
        except OSError as error:
            raise NoukaiPermanentException(f"output_path {self.path} cannot be written: {error}") from error
