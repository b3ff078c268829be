"""An Airflow task keeps what it promises, whatever the service, the network, the workers and people do."""

from __future__ import annotations

import pytest

from tests.simulation.shrink import shortest_story

pytest.importorskip("airflow")

from tests.simulation.explore_airflow import airflow_time, run_airflow
from tests.simulation.test_mutants import assert_every_mutant_is_found

SCHEDULES = 1_000
CHUNK = 250
MUTANT_SCHEDULES = 5_000


@pytest.mark.parametrize("first_seed", range(0, SCHEDULES, CHUNK))
def test_no_schedule_violates_an_invariant(first_seed: int) -> None:
    """Thousands of tasks end without a violation; one that does not is told as its shortest story."""
    with airflow_time():
        for seed in range(first_seed, first_seed + CHUNK):
            outcome = run_airflow(seed)
            assert not outcome.violations, shortest_story(outcome, run_airflow)


def test_a_schedule_is_the_same_each_time() -> None:
    """A seed always leads to the same schedule."""
    with airflow_time():
        for seed in range(20):
            first = run_airflow(seed, told=True)
            assert run_airflow(seed, told=True) == first


@pytest.mark.timeout(3600)
def test_every_mutant_is_found() -> None:
    """A schedule violates an invariant soon when the provider is broken, in whichever way."""
    assert_every_mutant_is_found("airflow", MUTANT_SCHEDULES)
