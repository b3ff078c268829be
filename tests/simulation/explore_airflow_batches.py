"""Runs schedules of an Airflow task that runs a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.simulation import core_state
from tests.simulation.airflow_batch import AirflowBatch
from tests.simulation.airflow_batch_invariants import AirflowBatchHistory, airflow_batch_violations
from tests.simulation.airflow_task import airflow_world
from tests.simulation.choices import Choices, Decision
from tests.simulation.clock import Clock, LivingClock, living_in
from tests.simulation.coverage import wire_states
from tests.simulation.explore import Outcome
from tests.simulation.explore_batches import small_sessions
from tests.simulation.simulation import HORIZON, Simulation

_LIVING = LivingClock()


@contextmanager
def airflow_batch_time() -> Iterator[None]:
    """Let the core and the provider live in virtual time."""
    with living_in(_LIVING, "noukai_core", "noukai_airflow"), small_sessions():
        yield


def run_airflow_batches(
    seed: int, replayed: Mapping[Decision, int] | None = None, *, told: bool = False
) -> Outcome:
    """Run one schedule, inside of `airflow_batch_time`."""
    choices = Choices(seed, replayed)
    clock = Clock()
    _LIVING.clock, _LIVING.jitter = clock, choices.jitter
    core_state.forget(choices.jitter.random())
    simulation = Simulation(choices, clock, told=told)
    task = AirflowBatch(simulation)
    with airflow_world(_LIVING, task):
        task.begin()
        task.interleaving.run(clock.now + HORIZON)
    history = AirflowBatchHistory(task)
    return Outcome.of(seed, simulation, airflow_batch_violations(history), wire_states(history))
