"""A wall clock of running processes that a test can set."""

from __future__ import annotations

import mmap
import struct
import subprocess
from pathlib import Path

_LONG = struct.Struct("l")
_SOURCE = Path(__file__).with_name("turned_clock.c")


class TurnedClock:
    """The wall clock of processes that are started with its `environment`.

    Args:
        folder: Where its library is built.
    """

    def __init__(self, folder: Path) -> None:
        library, seconds = folder / "turned_clock.so", folder / "seconds"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, _SOURCE], check=True)
        seconds.write_bytes(_LONG.pack(0))
        with seconds.open("r+b") as file:
            self._seconds = mmap.mmap(file.fileno(), _LONG.size)
        self.environment = {"LD_PRELOAD": str(library), "TURNED_CLOCK": str(seconds)}

    def turn(self, seconds: int) -> None:
        """Set the clock ahead of the true time by a number of seconds, or back if the number is negative."""
        self._seconds[:] = _LONG.pack(seconds)
