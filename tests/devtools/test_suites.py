"""The runner of the suites continues after a red suite, and names what failed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from devtools import suites
from devtools.suites import Suite


@pytest.fixture
def lanes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Suite]]:
    """A repository with lanes that the test fills."""
    python = tmp_path / ".venv" / "here" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    lanes: dict[str, list[Suite]] = {}
    monkeypatch.setattr(suites, "REPOSITORY", tmp_path)
    monkeypatch.setattr(suites, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(suites, "LANES", lanes)
    return lanes


def suite(name: str, source: str) -> Suite:
    """Writes a suite with one file."""
    folder = suites.REPOSITORY / "tests" / name
    folder.mkdir(parents=True)
    (folder / f"test_{name}.py").write_text(source)
    return Suite("here", name)


def run(monkeypatch: pytest.MonkeyPatch, *names: str) -> int:
    """Runs lanes as the command line does."""
    monkeypatch.setattr(sys, "argv", ["suites", *names])
    return suites.main()


def test_a_red_suite_stops_no_other(
    lanes: dict[str, list[Suite]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every suite of every lane runs; the end names the failed test, its log and the counts."""
    lanes["one"] = [
        suite("red", "def test_bad(): assert False\ndef test_good(): pass\n"),
        suite("after", "def test_it(): pass\n"),
    ]
    lanes["two"] = [suite("beside", "import pytest\n@pytest.mark.skip\ndef test_it(): pass\n")]
    assert run(monkeypatch, "one", "two") == 1
    printed = capsys.readouterr().out
    assert "RED: tests/red in .venv/here, see logs/here-red.log" in printed
    assert "  tests/red/test_red.py::test_bad" in printed
    assert printed.endswith("2 passed, 1 failed, 1 skipped\n")


MEETING = """
from pathlib import Path
from time import sleep

def test_it():
    Path("here {name}").touch()
    while not Path("here {other}").exists():
        sleep(0.05)
"""
ALONE = """
from pathlib import Path

def test_it():
    busy = Path("busy")
    busy.touch(exist_ok=False)
    while not Path("here one").exists():
        pass
    busy.unlink()
"""


def test_busy_suites_run_one_after_the_other(
    lanes: dict[str, list[Suite]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suites that mostly wait run beside each other and beside a busy one; two busy ones do not."""
    lanes["one"] = [
        replace(suite("first", ALONE), busy=True),
        suite("a", MEETING.format(name="one", other="two")),
    ]
    lanes["two"] = [
        replace(suite("second", ALONE), busy=True),
        suite("b", MEETING.format(name="two", other="one")),
    ]
    assert run(monkeypatch, "one", "two") == 0


def test_waiting_suites_run_in_place_of_the_busy_ones(
    lanes: dict[str, list[Suite]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once no busy suite is left, one more of the others runs."""
    monkeypatch.setattr(suites, "_WAITING_AT_ONCE", 1)
    lanes["one"] = [
        replace(suite("busy", "def test_it(): pass\n"), busy=True),
        suite("a", MEETING.format(name="one", other="two")),
        suite("b", MEETING.format(name="two", other="one")),
    ]
    assert run(monkeypatch, "one") == 0


def test_a_suite_that_cannot_be_collected_is_red(
    lanes: dict[str, list[Suite]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A suite whose import fails counts as failed."""
    lanes["one"] = [suite("broken", "import no_such_module\n")]
    assert run(monkeypatch, "one") == 1
    assert "  tests/broken/test_broken.py" in capsys.readouterr().out


def test_a_suite_without_a_test_is_red(
    lanes: dict[str, list[Suite]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A suite that runs no test proves nothing."""
    lanes["one"] = [suite("empty", "")]
    assert run(monkeypatch, "one") == 1
    assert "no test failed by itself" in capsys.readouterr().out


def test_a_suite_that_is_skipped(
    lanes: dict[str, list[Suite]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A suite that is left out is not run, and is not missed."""
    lanes["one"] = [
        suite("red", "def test_bad(): assert False\n"),
        suite("green", "def test_it(): pass\n"),
    ]
    assert run(monkeypatch, "one", "--skip", "red") == 0
    assert capsys.readouterr().out.endswith("1 passed, 0 failed, 0 skipped\n")


def test_green_suites(
    lanes: dict[str, list[Suite]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When nothing failed, the run is green."""
    lanes["one"] = [suite("green", "def test_it(): pass\n")]
    assert run(monkeypatch, "one") == 0
    assert capsys.readouterr().out.endswith("1 passed, 0 failed, 0 skipped\n")
