"""The plugin that searches for tests that need a quick machine, or the tests before them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TESTS = """
import time
import httpx
import pytest

@pytest.mark.parametrize("number", range(20))
def test_of_this_order(number):
    with open("order", "a") as order:
        print(number, file=order)

def test_that_needs_a_quick_machine():
    begin = time.monotonic()
    with httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200))) as client:
        for _ in range(20):
            client.get("http://noukai.test")
    assert time.monotonic() - begin < 0.2
"""


def run(folder: Path, seed: str) -> tuple[str, list[str]]:
    """Run the tests, and return what is printed, and their order."""
    (folder / "pytest.ini").write_text("[pytest]\n")  # not the settings of the folders above
    (folder / "test_latency.py").write_text(_TESTS)
    (folder / "order").write_text("")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "devtools.latency",
            "-p",
            "no:cacheprovider",
            "test_latency.py",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "LATENCY_SEED": seed},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout, (folder / "order").read_text().split()


def test_what_the_plugin_does(tmp_path: Path) -> None:
    """It shuffles the tests by the seed that it prints, and lets one fail that needs quick responses."""
    printed, order = run(tmp_path, "1")
    assert "FAILED test_latency.py::test_that_needs_a_quick_machine" in printed
    assert "1 failed, 20 passed" in printed
    assert "LATENCY_SEED=1" in printed
    assert order == run(tmp_path, "1")[1] != run(tmp_path, "2")[1]
    assert sorted(order, key=int) == [str(number) for number in range(20)] != order
