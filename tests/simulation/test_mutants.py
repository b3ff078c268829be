"""The simulator has teeth: each change of the core that breaks a promise is found."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.mutants import MUTANTS, Mutant

SCHEDULES = 20_000


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_found(mutant: Mutant) -> None:
    """A schedule violates an invariant soon when the core is broken."""
    command = (sys.executable, "-m", "tests.simulation", "--until-found", "--seed", "1")
    ran = subprocess.run(
        [*command, "--schedules", str(SCHEDULES), "--mutant", mutant.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "found by schedule" in ran.stdout, ran.stdout + ran.stderr
