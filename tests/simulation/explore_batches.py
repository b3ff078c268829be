"""Runs schedules of a batch, and checks what must hold after each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from noukai_core._engine import batch as engine
from noukai_core._engine import lanes
from tests.simulation.batch_invariants import BatchHistory, batch_violations
from tests.simulation.batches import Batching
from tests.simulation.choices import Decision
from tests.simulation.coverage import wire_states
from tests.simulation.explore import Outcome, new_simulation, virtual_time

_FEW_JOBS_IN_A_SESSION = 4
_JOBS_BEFORE_NEXT_LANE = 2

_log = logging.getLogger("noukai_core")


class _Lines(logging.Handler):
    """Takes the lines of the batch that runs.

    Attributes:
        batching: That batch.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.batching: Batching | None = None

    def emit(self, record: logging.LogRecord) -> None:
        assert self.batching is not None
        simulation, line = self.batching.simulation, record.getMessage()
        simulation.story.tell("the log: {0}", line)
        self.batching.lines.append((simulation.clock.now, line))


_lines = _Lines()


@contextmanager
def small_sessions() -> Iterator[None]:
    """Let a few jobs fill a session."""
    sizes = lanes.MAX_JOBS, engine.JOBS_BEFORE_NEXT_LANE
    lanes.MAX_JOBS, engine.JOBS_BEFORE_NEXT_LANE = _FEW_JOBS_IN_A_SESSION, _JOBS_BEFORE_NEXT_LANE
    try:
        yield
    finally:
        lanes.MAX_JOBS, engine.JOBS_BEFORE_NEXT_LANE = sizes


@contextmanager
def batch_time() -> Iterator[None]:
    """Let the core live in virtual time, and read its log."""
    propagates, level = _log.propagate, _log.level
    with virtual_time(), small_sessions():
        logging.disable(logging.INFO)
        _log.propagate = False
        _log.setLevel(logging.WARNING)
        _log.addHandler(_lines)
        try:
            yield
        finally:
            _log.removeHandler(_lines)
            _log.setLevel(level)
            _log.propagate = propagates


def run_batches(seed: int, replayed: Mapping[Decision, int] | None = None, *, told: bool = False) -> Outcome:
    """Run one schedule, inside of `batch_time`."""
    simulation = new_simulation(seed, replayed, told=told)
    _lines.batching = batching = Batching(simulation)
    batching.begin()
    simulation.run()
    simulation.dispose()
    history = BatchHistory(batching)
    return Outcome.of(seed, simulation, batch_violations(history), wire_states(history))
