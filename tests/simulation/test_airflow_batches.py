"""An Airflow task with a batch keeps what it promises, whatever happens around it."""

from __future__ import annotations

import pytest

from tests.simulation.shrink import shortest_story

pytest.importorskip("airflow")

from tests.simulation.explore_airflow_batches import airflow_batch_time, run_airflow_batches
from tests.simulation.test_mutants import assert_every_mutant_is_found

SCHEDULES = 500
CHUNK = 125
MUTANT_SCHEDULES = 5_000


@pytest.mark.parametrize("first_seed", range(0, SCHEDULES, CHUNK))
def test_no_schedule_violates_an_invariant(first_seed: int) -> None:
    """Thousands of tasks end without a violation; one that does not is told as its shortest story."""
    with airflow_batch_time():
        for seed in range(first_seed, first_seed + CHUNK):
            outcome = run_airflow_batches(seed)
            assert not outcome.violations, shortest_story(outcome, run_airflow_batches)


def test_a_schedule_is_the_same_each_time() -> None:
    """A seed always leads to the same schedule."""
    with airflow_batch_time():
        for seed in range(20):
            first = run_airflow_batches(seed, told=True)
            assert run_airflow_batches(seed, told=True) == first


@pytest.mark.timeout(3600)
def test_every_mutant_is_found() -> None:
    """A schedule violates an invariant soon when the provider is broken, in whichever way."""
    assert_every_mutant_is_found("airflow_batches", MUTANT_SCHEDULES)
