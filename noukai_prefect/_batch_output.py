"""The outcomes of a batch as JSONL files in a storage block of Prefect, so that no large result is kept."""

from __future__ import annotations

import asyncio
import inspect
import json
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from prefect.filesystems import WritableFileSystem

from noukai_core import InvalidInputError
from noukai_core.batch_files import FAILED, OutcomePart, json_line, shown_path
from noukai_core.batch_record import BatchRecord
from noukai_core.time_limit import time_limit

_FOLDER = "noukai-jobs"
_DESCRIPTION = "batch.json"

MAX_SECONDS = 300.0
"""How long a storage may take to read or write a file. Jobs are left running when it takes longer."""


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


def another_storage(record: BatchRecord, where: str) -> InvalidInputError:
    """Return the error of a rerun that would lose the outcomes which earlier attempts have written.

    Args:
        record: What earlier attempts recorded.
        where: Why they would be lost.
    """
    return InvalidInputError(
        f"earlier attempts wrote the outcomes of {record.counts['completed']} completed jobs to an "
        f"output_storage, and they {where}. Nothing was submitted. Pass the same output_storage as before, "
        "or start a new flow run"
    )


class OutputStorage:
    """Writes `part-00001-….jsonl` and so on, with the completed jobs, and `failed.jsonl` with the others.

    Another attempt that is alive as well writes parts of other names. A part that was written just before a
    crash is recorded by the next attempt.

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
        self._part = OutcomePart(len(record.parts))

    @property
    def path(self) -> str:
        """The folder, without a user and a password that the block's own path may have."""
        base = shown_path(str(getattr(self._block, "basepath", None) or "")).rstrip("/")
        return f"{base}/{self._folder}" if base else self._folder

    async def open(self) -> None:
        """Write a file that describes the batch, before anything is paid for.

        Raises:
            InvalidInputError: That is not possible, or earlier attempts wrote to another storage.
        """
        if self._record.parts:
            await self._check_earlier_parts()
        for name in list(self._record.begun_parts):
            await self._adopt(name)
        self._part = OutcomePart(len(self._record.parts))
        try:
            await self._write(_DESCRIPTION, json.dumps({"flow": self._flow}))
        except Exception as error:
            raise InvalidInputError(f"output_storage {self.path} cannot be written: {error}") from error

    async def _check_earlier_parts(self) -> None:
        """Make sure that earlier attempts wrote to this storage: a rerun does not return their outcomes."""
        try:
            await self._call("read_path", _DESCRIPTION)
        except Exception as error:
            raise another_storage(
                self._record, f"are not in the output_storage {self.path} ({error})"
            ) from error

    async def _adopt(self, name: str) -> None:
        """Let a part count that an earlier attempt wrote just before it ended, if it did.

        Raises:
            InvalidInputError: It is not known whether it did.
        """
        try:
            content = await self._call("read_path", name)
        except Exception as error:
            if await self._says_missing(name, error):
                return
            raise InvalidInputError(
                f"output_storage {self.path}: {name} cannot be read, in which an earlier attempt may have "
                f"written outcomes: {error}. Nothing was submitted; run it again once the file can be read"
            ) from error
        if not self._record.adopt_part(name, content):
            await self._write(name, "")  # it was cut off, and its jobs are written again

    async def _says_missing(self, name: str, error: Exception) -> bool:
        """Return whether an error is how the storage says that a file is missing, which differs by block."""
        missing = f"part-00000-{secrets.token_hex(4)}.jsonl"
        try:
            await self._call("read_path", missing)
        except Exception as said:
            return type(said) is type(error) and _first_line(said, missing) == _first_line(error, name)
        return False

    async def add(self, row: Mapping[str, Any]) -> None:
        """Add a completed job, and write the part if it is large or old enough."""
        self._part.add(row)
        if self._part.is_due():
            await self.flush()

    async def flush(self) -> None:
        """Write the completed jobs that are not yet written, and record that they are."""
        part = self._part
        if part.rows:
            with suppress(Exception):  # then a rerun after a crash in the next line writes these jobs again
                await self._record.begin_part(part)
            await self._write(part.name, part.text)
            self._record.end_part(part)
            self._part = part.following()

    async def write_failed(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all jobs that did not complete. An earlier attempt may have left others."""
        await self._write(FAILED, "".join(f"{json_line(row)}\n" for row in rows))

    async def _write(self, name: str, text: str) -> None:
        await self._call("write_path", name, text.encode())

    async def _call(self, operation: str, name: str, *arguments: bytes) -> Any:
        """Read or write a file in the folder."""
        # Blocks of Prefect do it asynchronously here; blocks of others may block, or not be coroutines.
        method: Any = getattr(self._block, f"a{operation}", None) or getattr(self._block, operation)
        path = f"{self._folder}/{name}"
        try:
            async with time_limit(MAX_SECONDS):
                if inspect.iscoroutinefunction(method):
                    called = method(path, *arguments)
                else:
                    called = await asyncio.to_thread(method, path, *arguments)
                return await called if inspect.isawaitable(called) else called
        except TimeoutError as error:
            raise TimeoutError(
                str(error) or f"output_storage {self.path}: {name}: no response within {MAX_SECONDS:g} s"
            ) from error


def _first_line(error: Exception, name: str) -> str:
    """Return what an error says of a file. The lines after the first may have the id of a request."""
    return str(error).partition("\n")[0].replace(name, "")
