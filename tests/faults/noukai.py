"""The local Noukai in a separate process, which can be killed and started again at the same address."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from devtools.processes import Component, ServerError, free_port, wait_until
from noukai_core.emulator import EmulatorControl


class NoukaiProcess:
    """A local Noukai that keeps its state file in a folder, and its address across restarts."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}/api/v1"
        self.control = EmulatorControl(self.base_url)
        command = [sys.executable, "-m", "noukai_core.emulator", "--port", str(self.port)]
        state_file = ["--state-file", str(folder / "jobs.jsonl")]
        self._component = Component("noukai", [*command, *state_file], {}, folder / "noukai.log")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        self.control.close()

    def start(self) -> None:
        """Start it, and return when it responds."""
        self._component.start()
        wait_until(self._responds, "the local Noukai", alive=self._check_alive)

    def kill(self) -> None:
        """Kill it at once, in the middle of its work."""
        self._component.kill()

    def _responds(self) -> bool:
        try:
            self.control.counts()
        except httpx.TransportError:
            return False
        return True

    def _check_alive(self) -> None:
        if not self._component.running:
            raise ServerError(f"the local Noukai ended by itself: {self._component.log.read_text()[-2000:]}")
