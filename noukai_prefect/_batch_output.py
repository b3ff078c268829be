"""The outcomes of a batch as JSONL files in a storage block of Prefect, so that no large result is kept."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

from prefect.filesystems import WritableFileSystem

from noukai_core import InvalidInputError
from noukai_core.batch_files import FAILED, OutcomePart, json_line
from noukai_core.batch_record import BatchRecord

_FOLDER = "noukai-jobs"


def check_output_storage(block: object) -> WritableFileSystem | None:
    """Check the argument `output_storage`.

    Raises:
        InvalidInputError: Nothing can be written to it.
    """
    if block is None or isinstance(block, WritableFileSystem):
        return block
    raise InvalidInputError(
        f"output_storage is a {type(block).__name__}, but must be a block to which files can be written, "
        "such as LocalFileSystem or S3Bucket"
    )


class OutputStorage:
    """Writes `part-00001.jsonl` and so on, with the completed jobs, and `failed.jsonl` with the others.

    A part that was written just before a crash is written again, with the same name.

    Args:
        block: The storage.
        slot: Which of the flow run's batches it is; a rerun continues in the same folder.
        flow: The Noukai flow.
        record: What counts, and what is already written.
    """

    def __init__(self, block: WritableFileSystem, slot: str, flow: str, record: BatchRecord) -> None:
        self._block = block
        self._folder = f"{_FOLDER}/{slot}"
        self._flow = flow
        self._record = record
        self._part = OutcomePart(record.part)

    @property
    def path(self) -> str:
        """The folder."""
        base = str(getattr(self._block, "basepath", None) or "").rstrip("/")
        return f"{base}/{self._folder}" if base else self._folder

    async def open(self) -> None:
        """Write a file that describes the batch, before anything is paid for.

        Raises:
            InvalidInputError: That is not possible.
        """
        try:
            await self._write("batch.json", json.dumps({"flow": self._flow}))
        except Exception as error:
            raise InvalidInputError(f"output_storage {self.path} cannot be written: {error}") from error

    async def add(self, row: Mapping[str, Any]) -> None:
        """Add a completed job, and write the part if it is large or old enough."""
        self._part.add(row)
        if self._part.is_due():
            await self.flush()

    async def flush(self) -> None:
        """Write the completed jobs that are not yet written, and record that they are."""
        part = self._part
        if part.rows:
            await self._write(part.name, part.text)
            self._record.add_part(part.rows)
            self._part = part.following()

    async def write_failed(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all jobs that did not complete. An earlier attempt may have left others."""
        await self._write(FAILED, "".join(f"{json_line(row)}\n" for row in rows))

    async def _write(self, name: str, text: str) -> None:
        # Blocks of Prefect write asynchronously here; blocks of others may block, or not be coroutines.
        write: Any = getattr(self._block, "awrite_path", None) or self._block.write_path
        if not inspect.iscoroutinefunction(write):
            written = await asyncio.to_thread(write, f"{self._folder}/{name}", text.encode())
        else:
            written = write(f"{self._folder}/{name}", text.encode())
        if inspect.isawaitable(written):
            await written
