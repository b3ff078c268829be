"""Runs schedules of an Airflow task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.simulation.airflow_invariants import airflow_violations
from tests.simulation.airflow_task import AirflowTask, airflow_world
from tests.simulation.choices import Decision
from tests.simulation.clock import living_in
from tests.simulation.coverage import wire_states
from tests.simulation.explore import LIVING, Outcome, new_simulation
from tests.simulation.invariants import History
from tests.simulation.simulation import HORIZON


@contextmanager
def airflow_time() -> Iterator[None]:
    """Let the core and the provider live in virtual time."""
    with living_in(LIVING, "noukai_core", "noukai_airflow"):
        yield


def run_airflow(seed: int, replayed: Mapping[Decision, int] | None = None, *, told: bool = False) -> Outcome:
    """Run one schedule, inside of `airflow_time`."""
    simulation = new_simulation(seed, replayed, told=told)
    task = AirflowTask(simulation)
    with airflow_world(LIVING, task):
        task.begin()
        task.interleaving.run(simulation.clock.now + HORIZON)
    history = History(simulation)
    return Outcome.of(seed, simulation, airflow_violations(task), wire_states(history))
