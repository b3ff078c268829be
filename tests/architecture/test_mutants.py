"""The mutants of the simulator change code that exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation import mutants, parts

REPOSITORY = Path(__file__).parents[2]


def source_of(module: str) -> str:
    """Return the source of a module of the packages, without importing it."""
    path = Path(*module.split(".")).with_suffix(".py")
    return next(
        (root / path).read_text(encoding="utf-8")
        for root in (REPOSITORY, REPOSITORY / "core")
        if (root / path).exists()
    )


@pytest.mark.parametrize("part", parts.NAMES)
def test_every_mutant_fits(part: str) -> None:
    """Each mutant finds the text that it replaces exactly once, and what it makes of it is Python."""
    for mutant in mutants.of_part(part):
        assert compile(mutant.applied(source_of(mutant.module)), mutant.name, "exec")
