"""Runs `peer_services.py`, the server of the benchmarks that poll over TLS."""

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
