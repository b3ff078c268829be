"""A Prefect flow run keeps what it promises, whatever the service, the network and people do."""

from __future__ import annotations

import pytest

from tests.simulation.shrink import shortest_story

pytest.importorskip("prefect")

from tests.simulation.explore_prefect import prefect_time, run_prefect
from tests.simulation.test_mutants import assert_every_mutant_is_found

SCHEDULES = 1_500
CHUNK = 250
MUTANT_SCHEDULES = 8_000


@pytest.mark.parametrize("first_seed", range(0, SCHEDULES, CHUNK))
def test_no_schedule_violates_an_invariant(first_seed: int) -> None:
    """Flow runs and batches end without a violation; one that does not is told as its shortest story."""
    with prefect_time():
        for seed in range(first_seed, first_seed + CHUNK):
            outcome = run_prefect(seed)
            assert not outcome.violations, shortest_story(outcome, run_prefect)


def test_a_schedule_is_the_same_each_time() -> None:
    """A seed always leads to the same schedule."""
    with prefect_time():
        for seed in range(10):
            first = run_prefect(seed, told=True)
            assert run_prefect(seed, told=True) == first


@pytest.mark.timeout(3600)
def test_every_mutant_is_found() -> None:
    """A schedule violates an invariant soon when the integration is broken, in whichever way."""
    assert_every_mutant_is_found("prefect", MUTANT_SCHEDULES)
