"""The simulator has teeth: each change of the core that breaks a promise is found."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation import mutants

SCHEDULES = 20_000


def assert_every_mutant_is_found(part: str, schedules: int) -> None:
    """Fail if a mutant of a part is not found by the first schedules."""
    ran = _simulate("--part", part, "--mutants", "--schedules", str(schedules), "--processes", "2")
    found = ran.stdout.count("\nfound: ") + ran.stdout.startswith("found: ")
    assert (ran.returncode, found) == (0, len(mutants.of_part(part))), ran.stdout + ran.stderr


@pytest.mark.timeout(3600)
def test_every_mutant_is_found() -> None:
    """A schedule violates an invariant soon when the core is broken, in whichever way."""
    assert_every_mutant_is_found("engine", SCHEDULES)


def test_a_mutant_is_put_into_every_process() -> None:
    """The schedules of a search with one mutant run on its code, so that they tell its story."""
    mutant = "any 404 to the look-up proves absence"
    ran = _simulate("--mutant", mutant, "--schedules", "1500", "--processes", "1")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "violates one_job_per_submission" in ran.stdout


@pytest.mark.parametrize("search", [(), ("--mutants",)], ids=["one", "all"])
def test_an_unknown_mutant(search: tuple[str, ...]) -> None:
    """The name of no mutant is an error, and no search that finds nothing."""
    ran = _simulate(*search, "--mutant", "no such mutant", "--schedules", "1", "--processes", "1")
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert "there is no mutant 'no such mutant' of engine" in ran.stderr


def _simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", "1", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
