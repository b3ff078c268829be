"""An Airflow task keeps what it promises, whatever the service, the network, the workers and people do."""

from __future__ import annotations

import pytest

from tests.simulation.shrink import shortest_story

pytest.importorskip("airflow")

from tests.simulation.explore_airflow import airflow_time, run_airflow

SCHEDULES = 1_000
CHUNK = 250


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
