"""Runs schedules, by their seeds, and counts the distinct states that they reach."""

from __future__ import annotations

import gc
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from noukai_core._engine import schedule, submit
from tests.simulation import core_state, mutants, parts
from tests.simulation.choices import Choices, Decision
from tests.simulation.clock import Clock, LivingClock, living_in
from tests.simulation.coverage import State, states
from tests.simulation.invariants import History, Violation, violations
from tests.simulation.scenarios import Asking, Crowd, Neighbours, Submitting
from tests.simulation.simulation import Simulation

LIVING = LivingClock()

_CHUNK = 500

_BUSY_PAUSE = 1.0
"""A call that waits for another one checks ten times less often: that was half of all steps."""

_FIRST_TICK = 0.03
"""Seconds, in the place of what each process draws for itself."""

_SCENARIOS: tuple[Callable[[Simulation], Submitting | Crowd | Asking | Neighbours], ...] = (
    Submitting,
    Submitting,
    Submitting,
    Submitting,
    Asking,
    Crowd,
    Neighbours,
)


class Outcome(NamedTuple):
    """What came of one schedule.

    Attributes:
        seed: Its seed.
        decisions: The decisions that were not harmless.
        violations: The invariants that do not hold.
        states: The states that it reached.
        story: What happened, if it was told.
        unusual: What the decisions mean, likewise.
    """

    seed: int
    decisions: Mapping[Decision, int]
    violations: list[Violation]
    states: set[State]
    story: list[str]
    unusual: list[str]

    @classmethod
    def of(
        cls, seed: int, simulation: Simulation, violations: list[Violation], states: Iterable[State]
    ) -> Outcome:
        """Return what came of a schedule that is over."""
        choices = simulation.choices
        unusual = [choices.described.get(decision, decision[0]) for decision in choices.made]
        return cls(seed, choices.made, violations, set(states), simulation.story.lines, unusual)


@contextmanager
def virtual_time() -> Iterator[None]:
    """Let the core live in virtual time."""
    level, pause, first_tick = logging.root.manager.disable, submit.BUSY_PAUSE, schedule._FIRST_TICK
    logging.disable(logging.CRITICAL)
    submit.BUSY_PAUSE = _BUSY_PAUSE
    schedule._FIRST_TICK = _FIRST_TICK  # or a seed would be another schedule in each process
    try:
        with living_in(LIVING, "noukai_core"):
            yield
    finally:
        logging.disable(level)
        submit.BUSY_PAUSE = pause
        schedule._FIRST_TICK = first_tick


def new_simulation(seed: int, replayed: Mapping[Decision, int] | None, *, told: bool) -> Simulation:
    """Return the world of a schedule, in which the modules live from now on."""
    choices = Choices(seed, replayed)
    clock = Clock()
    LIVING.clock, LIVING.jitter = clock, choices.jitter
    core_state.forget(choices.jitter.random())  # what it keeps by key differs in each process
    return Simulation(choices, clock, told=told)


def run(seed: int, replayed: Mapping[Decision, int] | None = None, *, told: bool = False) -> Outcome:
    """Run one schedule, inside of `virtual_time`."""
    simulation = new_simulation(seed, replayed, told=told)
    scenario = _SCENARIOS[simulation.choices.index("scenario", len(_SCENARIOS))](simulation)
    scenario.begin()
    simulation.run()
    simulation.dispose()
    history = History(simulation)
    return Outcome.of(seed, simulation, violations(history), states(history))


class Chunk(NamedTuple):
    """What came of the schedules of some seeds.

    Attributes:
        schedules: How many there were.
        states: The states that this process had not reached before.
        violated: The first schedule for each invariant that did not hold, by its name.
    """

    schedules: int
    states: set[State]
    violated: dict[str, Outcome]


_reached: set[State] = set()


def run_chunk(name: str, seeds: range) -> Chunk:
    """Run the schedules of some seeds of a part."""
    part = parts.part(name)
    violated: dict[str, Outcome] = {}
    new: set[State] = set()
    gc.freeze()  # what is imported stays; to look through it takes a tenth of the time
    with part.world():
        for seed in seeds:
            outcome = part.run(seed)
            new |= outcome.states - _reached
            for violation in outcome.violations:
                violated.setdefault(violation.invariant, outcome)
    _reached.update(new)
    return Chunk(len(seeds), new, violated)


def explore(
    name: str, first_seed: int, schedules: int, processes: int, mutant: str | None = None
) -> Iterator[Chunk]:
    """Run many schedules of a part in several processes, and yield what came of them in their order.

    Args:
        name: The name of the part.
        first_seed: The seed of the first schedule.
        schedules: How many there are.
        processes: How many processes run them.
        mutant: The mutant in whose code they run.
    """
    chunks = [
        range(seed, min(seed + _CHUNK, first_seed + schedules))
        for seed in range(first_seed, first_seed + schedules, _CHUNK)
    ]
    prepare = None if mutant is None else partial(mutants.put_in, name, mutant)
    with multiprocessing.get_context("spawn").Pool(processes, prepare) as pool:
        yield from pool.imap(partial(run_chunk, name), chunks)
