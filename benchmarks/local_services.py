"""The servers of the benchmarks, each in its own process: a local Noukai, and `peer_services.py` over TLS."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def local_services(folder: Path) -> Iterator[tuple[str, str]]:
    """Run the server in a separate process; return its address, and the file of certificates to trust."""
    command = [sys.executable, Path(__file__).with_name("peer_services.py"), folder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        reported = json.loads(process.stdout.readline())
        yield reported["address"], reported["certificates"]
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def local_noukai() -> Iterator[str]:
    """Run a local Noukai, and yield its base URL."""
    command = [sys.executable, "-m", "noukai_core.emulator", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(10)
