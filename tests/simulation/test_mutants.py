"""The simulator has teeth: each change of the core that breaks a promise is found."""

from __future__ import annotations

import subprocess
import sys

from tests.simulation import mutants

SCHEDULES = 20_000


def assert_every_mutant_is_found(part: str, schedules: int) -> None:
    """Fail if a mutant of a part is not found by the first schedules."""
    command = (sys.executable, "-m", "tests.simulation", "--part", part, "--mutants", "--seed", "1")
    ran = subprocess.run(
        [*command, "--schedules", str(schedules), "--processes", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = ran.stdout.count("\nfound: ") + ran.stdout.startswith("found: ")
    assert (ran.returncode, found) == (0, len(mutants.of_part(part))), ran.stdout + ran.stderr


def test_every_mutant_is_found() -> None:
    """A schedule violates an invariant soon when the core is broken, in whichever way."""
    assert_every_mutant_is_found("engine", SCHEDULES)
