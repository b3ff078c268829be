"""The outcomes of a batch as JSONL files in a folder, so that nothing large goes through XComs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from noukai_airflow.exceptions import NoukaiPermanentException
from noukai_core.batch_files import FAILED, json_line

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from noukai_core.batch_files import OutcomePart


class OutputFolder:
    """Writes `part-00001.jsonl` and so on, with the completed jobs, and `failed.jsonl` with the others.

    A part is complete as soon as it is visible. A part that was written just before a crash is written again,
    with the same name.

    Args:
        path: The folder.
    """

    def __init__(self, path: ObjectStoragePath) -> None:
        self.path = path

    def remove_files(self) -> None:
        """Delete what an earlier run of the same task has written."""
        with self._explained():
            for file in [*self._files("part-*.jsonl"), *self._files(FAILED)]:
                file.unlink()

    def is_empty(self) -> bool:
        """Return whether there are no outcomes in the folder."""
        with self._explained():
            return not (self._files("part-*.jsonl") or self._files(FAILED))

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

    def write_part(self, part: OutcomePart) -> None:
        """Write completed jobs."""
        with self._explained():
            self._write(part.name, part.text)

    def write_failed(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all jobs that did not complete. Without any, there is no such file."""
        text = "".join(f"{json_line(row)}\n" for row in rows)
        with self._explained():
            if text:
                self._write(FAILED, text)
            elif (file := self.path / FAILED).exists():
                file.unlink()

    def _write(self, name: str, text: str) -> None:
        target = self.path / name
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
