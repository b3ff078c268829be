"""The outcomes of a batch as JSONL files in a folder, so that nothing large goes through XComs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from noukai_airflow._storage import accessing, files_in, write_text
from noukai_core.batch_files import FAILED, json_line

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from noukai_core.batch_files import OutcomePart
    from noukai_core.batch_record import BatchRecord

# Files of unknown origin as well, so wider than the names that are written here.
_OUTCOMES = re.compile(r"part-.*\.jsonl")


class OutputFolder:
    """Writes `part-00001-….jsonl` and so on, with the completed jobs, and `failed.jsonl` with the others.

    A part is complete as soon as it is visible. Another try that is alive as well writes parts of other
    names. A part that was written just before a crash is recorded by the next try.

    Args:
        path: The folder.
    """

    def __init__(self, path: ObjectStoragePath) -> None:
        self.path = path

    def files(self) -> list[ObjectStoragePath]:
        """Return the files with outcomes that are in the folder."""
        with accessing(self.path, "read"):
            files = files_in(self.path)
        return [file for file in files if file.name == FAILED or _OUTCOMES.fullmatch(file.name)]

    def remove(self, files: Iterable[ObjectStoragePath]) -> None:
        """Delete files that are in the folder."""
        with accessing(self.path, "emptied"):
            for file in files:
                with suppress(FileNotFoundError):  # another try has deleted it
                    file.unlink()

    def adopt_parts(self, record: BatchRecord) -> None:
        """Let count what an earlier try wrote just before it ended."""
        for name in list(record.begun_parts):
            with accessing(self.path, "read"), suppress(FileNotFoundError):
                record.adopt_part(name, (self.path / name).read_bytes())

    def write_part(self, part: OutcomePart) -> None:
        """Write completed jobs."""
        with accessing(self.path, "written"):
            write_text(self.path / part.name, part.text)

    def write_failed(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all jobs that did not complete. Without any, there is no such file."""
        text = "".join(f"{json_line(row)}\n" for row in rows)
        with accessing(self.path, "written"):
            if text:
                write_text(self.path / FAILED, text)
            elif (file := self.path / FAILED).exists():
                file.unlink()
