"""Tests of a live Airflow that wait at the same time report as if they ran one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = "from tests.e2e_airflow.side_by_side import pytest_configure, pytest_pyfunc_call"

TESTS = """
import threading

import pytest

pytestmark = pytest.mark.side_by_side

meeting = threading.Barrier(3)


@pytest.fixture(scope="module")
def two():
    return 2


@pytest.mark.parametrize("number", [1, 2])
def test_number(two, number):
    meeting.wait(60)
    assert number != two


def test_without_parameters(two):
    meeting.wait(60)


@pytest.mark.skipif(True, reason="not here")
def test_skipped(two):
    meeting.wait(60)
"""


def test_tests_that_wait_for_each_other(tmp_path: Path) -> None:
    """All tests of a module run at the same time, each fails by itself, and a skipped one does not run."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # or the settings of a folder above would count
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_meeting.py").write_text(TESTS)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rfE",
            "--strict-markers",
            "-p",
            "no:cacheprovider",
            tmp_path,
        ],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "test_meeting.py::test_number[2] - assert 2 != 2" in done.stdout, done.stdout + done.stderr
    assert "1 failed, 2 passed, 1 skipped" in done.stdout
