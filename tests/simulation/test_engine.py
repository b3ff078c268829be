"""The core's engine keeps what it promises, whatever the service, the network and the processes do."""

from __future__ import annotations

import pytest

from tests.simulation.explore import run, virtual_time
from tests.simulation.shrink import shortest_story

SCHEDULES = 50_000
CHUNK = 2_500


@pytest.mark.parametrize("first_seed", range(0, SCHEDULES, CHUNK))
def test_no_schedule_violates_an_invariant(first_seed: int) -> None:
    """Fifty thousand schedules end without a violation; one that does not is told as its shortest story."""
    with virtual_time():
        for seed in range(first_seed, first_seed + CHUNK):
            outcome = run(seed)
            assert not outcome.violations, shortest_story(outcome, run)


def test_a_schedule_is_the_same_each_time() -> None:
    """A seed always leads to the same schedule, and so do the decisions that it made."""
    with virtual_time():
        for seed in range(50):
            first = run(seed, told=True)
            assert run(seed, told=True) == first
            replayed = run(seed, first.decisions, told=True)
            assert (replayed.story, replayed.decisions) == (first.story, first.decisions)
