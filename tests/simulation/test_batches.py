"""A batch keeps what it promises, whatever the service, the network and the processes do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from noukai_core._engine.batch import Batch
from noukai_core._engine.batch_job import BatchJob
from noukai_core._engine.lanes import KnownJobs, Lane
from tests.simulation.batches import run
from tests.simulation.explore import virtual_time
from tests.simulation.shrink import shortest_story

SCHEDULES = 3_000
CHUNK = 500


@pytest.mark.parametrize("first_seed", range(0, SCHEDULES, CHUNK))
def test_no_schedule_violates_an_invariant(first_seed: int) -> None:
    """Thousands of schedules of batches end without a violation; one that does not is told shortly."""
    with virtual_time():
        for seed in range(first_seed, first_seed + CHUNK):
            outcome = run(seed)
            assert not outcome.violations, shortest_story(outcome, run)


def _forget_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KnownJobs, "digests", lambda _: "")


def _go_on_after_an_unknown_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lane, "full", property(lambda _: False))
    monkeypatch.setattr(Lane, "_note_unknown", lambda _: None)


def _record_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(*_: Any) -> Any:
        yield from ()
        return True

    monkeypatch.setattr(BatchJob, "record", record)


def _submit_again(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Batch._entry
    monkeypatch.setattr(Batch, "_entry", lambda batch, index, _: entry(batch, index, None))


@pytest.mark.parametrize(
    "mutate", [_forget_digests, _go_on_after_an_unknown_outcome, _record_nothing, _submit_again]
)
def test_a_mutant_is_found(
    monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """A batch that breaks a promise is found by the schedules."""
    mutate(monkeypatch)
    with virtual_time():
        assert any(run(seed).violations for seed in range(5_000))
