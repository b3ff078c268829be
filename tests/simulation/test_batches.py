"""A batch keeps what it promises, whatever the service, the ledger, the processes and people do."""

from __future__ import annotations

import pytest

from tests.simulation.explore_batches import batch_time, run_batches
from tests.simulation.shrink import shortest_story
from tests.simulation.test_mutants import assert_every_mutant_is_found

SCHEDULES = 6_000
CHUNK = 500

MUTANT_SCHEDULES = 10_000


@pytest.mark.parametrize("first_seed", range(0, SCHEDULES, CHUNK))
def test_no_schedule_violates_an_invariant(first_seed: int) -> None:
    """Thousands of schedules of batches end without a violation; one that does not is told shortly."""
    with batch_time():
        for seed in range(first_seed, first_seed + CHUNK):
            outcome = run_batches(seed)
            assert not outcome.violations, shortest_story(outcome, run_batches)


def test_a_schedule_is_the_same_each_time() -> None:
    """A seed always leads to the same schedule."""
    with batch_time():
        for seed in range(30):
            assert run_batches(seed, told=True) == run_batches(seed, told=True)


@pytest.mark.timeout(3600)
def test_every_mutant_is_found() -> None:
    """A schedule violates an invariant soon when the batches are broken, in whichever way."""
    assert_every_mutant_is_found("batches", MUTANT_SCHEDULES)
