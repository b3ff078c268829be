"""A storage of Prefect on the simulated machine: it is slow, it fails, and it may keep half of a file."""

from __future__ import annotations

import asyncio
from typing import Any

from prefect.filesystems import WritableFileSystem
from pydantic import PrivateAttr

from tests.simulation.process import StoreError


class SimulatedStorage(WritableFileSystem):
    """Keeps the files of a flow run, which all of its attempts share."""

    _flow_run: Any = PrivateAttr()
    _harm: float = PrivateAttr(0.0)
    _files: dict[str, bytes] = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, flow_run: Any) -> SimulatedStorage:
        """Return an empty storage."""
        storage = cls()
        storage._flow_run = flow_run
        storage._harm = flow_run.choices.pick("failures of the storage", (0.08, 0.5), 0.3)
        return storage

    def lines(self, path: str) -> list[bytes]:
        """Return the lines of a file; none if there is no such file."""
        return self._files.get(path, b"").splitlines()

    async def read_path(self, path: str) -> bytes:
        """Read a file."""
        await self._pass("read")
        if self._flow_run.choices.happens("a file cannot be read", 0.04):
            raise StoreError("the storage does not answer")
        if path not in self._files:
            raise FileNotFoundError(f"there is no {path}")
        return self._files[path]

    async def write_path(self, path: str, content: bytes) -> None:
        """Write a file."""
        ends = ("written", "failed", "written, but failed", "cut off")
        end = self._flow_run.choices.pick("end of a file", ends, self._harm)
        await self._pass("write", lambda: self._write(path, content, end))
        self._write(path, content, end)
        if end != "written":
            raise StoreError(end)

    async def _pass(self, what: str, before_death: Any = None) -> None:
        choices, process = self._flow_run.choices, self._flow_run.running
        await asyncio.sleep(choices.pick(f"slowness of a storage's {what}", (0.01, 3.0, 30.0), 0.05))
        if process.dead:
            if before_death is not None and choices.happens("a file outlives its process", 0.5):
                before_death()
            await asyncio.sleep(1e6)

    def _write(self, path: str, content: bytes, end: str) -> None:
        self._flow_run.simulation.story.tell("the storage: {0} {1}", path.rpartition("/")[2], end)
        if end == "cut off":
            self._files[path] = content[: len(content) // 2]
        elif end != "failed":
            self._files[path] = content
