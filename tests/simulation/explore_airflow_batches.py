"""Runs schedules of an Airflow task that runs a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.simulation.airflow_batch import AirflowBatch
from tests.simulation.airflow_batch_invariants import AirflowBatchHistory, airflow_batch_violations
from tests.simulation.airflow_task import airflow_world
from tests.simulation.choices import Decision
from tests.simulation.clock import living_in
from tests.simulation.coverage import wire_states
from tests.simulation.explore import LIVING, Outcome, new_simulation
from tests.simulation.explore_batches import small_sessions
from tests.simulation.simulation import HORIZON


@contextmanager
def airflow_batch_time() -> Iterator[None]:
    """Let the core and the provider live in virtual time."""
    with living_in(LIVING, "noukai_core", "noukai_airflow"), small_sessions():
        yield


def run_airflow_batches(
    seed: int, replayed: Mapping[Decision, int] | None = None, *, told: bool = False
) -> Outcome:
    """Run one schedule, inside of `airflow_batch_time`."""
    simulation = new_simulation(seed, replayed, told=told)
    task = AirflowBatch(simulation)
    with airflow_world(LIVING, task):
        task.begin()
        task.interleaving.run(simulation.clock.now + HORIZON)
    history = AirflowBatchHistory(task)
    return Outcome.of(seed, simulation, airflow_batch_violations(history), wire_states(history))
