"""What every run under faults has: a seed that is printed, and a local Noukai in a separate process."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.faults import scale
from tests.faults.noukai import NoukaiProcess


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seed, at any verbosity."""
    terminalreporter.write_line(f"FAULT_SEED={scale.SEED} repeats the faults of this run")


@pytest.fixture(scope="session")
def noukai_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoukaiProcess]:
    """One local Noukai for the whole run; tests take `noukai`, which is the same one, emptied."""
    with NoukaiProcess(tmp_path_factory.mktemp("noukai")) as process:
        yield process


@pytest.fixture
def noukai(noukai_process: NoukaiProcess) -> NoukaiProcess:
    """A local Noukai with no job, no script and no fault, whose jobs outlive its restart."""
    noukai_process.control.reset()
    return noukai_process


@pytest.fixture(autouse=True)
def no_flood(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand jobs log thousands of transient errors, which would hide a failed test."""
    caplog.set_level(logging.ERROR, "noukai_core")
