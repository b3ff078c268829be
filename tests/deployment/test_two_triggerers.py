"""Two triggerers on one PostgreSQL, one of which dies or stalls: the other takes over all of its jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devtools.airflow_server import LocalAirflow
from devtools.processes import wait_until
from tests.deployment.deployment import DAGS, SILENCE_SECONDS
from tests.deployment.servers import PostgreSQL
from tests.e2e_airflow.conftest import KEY, PROMPT, Run, Runs

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

JOBS = 6
FIRST_HOLDS = 4
"""How many triggers the first triggerer may hold; so the others are left to the second one."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def airflow(emulator_server: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    """A running Airflow on PostgreSQL, with one triggerer."""
    folder = tmp_path_factory.mktemp("two-triggerers")
    settings = {
        **PROMPT,
        "AIRFLOW__TRIGGERER__CAPACITY": str(FIRST_HOLDS),
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": str(SILENCE_SECONDS),
    }
    with (
        PostgreSQL(folder) as postgresql,
        LocalAirflow(
            Path(sys.executable).parent,
            folder / "airflow",
            [DAGS],
            database_url=postgresql.url,
            environment=settings,
            parallelism=8,
        ) as running,
    ):
        running.add_connection(
            "noukai_default", conn_type="noukai", password=KEY, host=emulator_server.base_url
        )
        yield running


@dataclass
class Shared:
    """A run of jobs that do not end by themselves, whose triggers are spread over two triggerers.

    Attributes:
        run: The run.
        first: The map indexes of the tasks whose triggers the first triggerer holds.
        second: Those of the second triggerer.
        jobs: The id of each task's job, by map index.
    """

    run: Run
    first: list[int]
    second: list[int]
    jobs: dict[int, str]

    def wait_for_polls(self, *indexes: int) -> None:
        """Wait until the jobs are polled (again)."""
        seen = {index: self._polls(index) for index in indexes}
        for index in indexes:
            # One may have been under way when its triggerer was stopped.
            wait_until(lambda at=index: self._polls(at) > seen[at] + 1, "a poll of a job", timeout=90)

    def end_by_a_person(self, index: int) -> None:
        """Mark a task as failed, and wait until its job is cancelled."""
        self.run.mark("failed", index)
        self.run.wait_for_end(self.jobs[index], "cancelled")

    def finish(self, *indexes: int) -> None:
        """Let jobs end, and check that each task succeeds with the output of its job."""
        for index in indexes:
            self.run.control.finish(self.jobs[index])
        for index in indexes:
            assert self.run.wait_for("success", map_index=index) == "success"
            assert self.run.xcom(map_index=index) == {"message": f"message {index}"}

    def cancels(self, *indexes: int) -> list[int]:
        """Count the requests to cancel the jobs of some tasks."""
        return [self.run.cancels(self.jobs[index]) for index in indexes]

    def _polls(self, index: int) -> int:
        return self.run.control.counts(self.jobs[index]).get("poll", 0)


def holder(run: Run, index: int) -> int | None:
    """Return the triggerer that holds the trigger of a task, by the number that Airflow gave it."""
    trigger = run.airflow.task(run.dag_id, run.run_id, run.task_id, index)["trigger"]
    return None if trigger is None else trigger["triggerer_id"]


@pytest.fixture
def shared(airflow: LocalAirflow, emulator_server: Emulator) -> Iterator[Shared]:
    """Six jobs: the first triggerer holds as many as it may, the second one, which comes later, the rest."""
    run = Runs(airflow, emulator_server).start("six_jobs", outcome="never")

    def held() -> list[int]:
        return [index for index in range(JOBS) if holder(run, index) is not None]

    for index in range(JOBS):
        run.wait_for("deferred", map_index=index)
    wait_until(lambda: len(held()) == FIRST_HOLDS, "the first triggerer's share")
    first = held()
    jobs = {index: run.xcom("job_id", map_index=index) for index in range(JOBS)}
    shared = Shared(run, first, [index for index in range(JOBS) if index not in first], jobs)
    second = airflow.extra_triggerer("triggerer-2", "--capacity", str(JOBS))
    shared.wait_for_polls(*range(JOBS))
    yield shared
    second.kill()
    airflow.triggerer.resume()
    if not airflow.triggerer.running:
        airflow.triggerer.start()


def test_the_other_triggerer_takes_over(airflow: LocalAirflow, shared: Shared) -> None:
    """When a triggerer dies, the other one waits for its jobs too: none is cancelled or submitted again."""
    assert len({holder(shared.run, index) for index in range(JOBS)}) == 2
    airflow.triggerer.kill()
    shared.wait_for_polls(*range(JOBS))
    shared.finish(*range(JOBS))
    assert shared.run.submissions() == len(shared.run.jobs()) == JOBS
    assert shared.cancels(*range(JOBS)) == [0] * JOBS


def test_hand_over_after_a_stall(airflow: LocalAirflow, shared: Shared) -> None:
    """A triggerer that stalls and recovers cancels none of the jobs that the other one has taken over."""
    airflow.triggerer.stall()
    shared.wait_for_polls(*range(JOBS))
    airflow.triggerer.resume()
    for index in shared.first:
        wait_until(
            lambda at=index: "its task still waits for it" in shared.run.logs(map_index=at),
            "the first triggerer to let go of a job",
        )
    of_the_first, *others = shared.first
    shared.end_by_a_person(of_the_first)
    shared.finish(*others, *shared.second)
    assert shared.run.submissions() == len(shared.run.jobs()) == JOBS
    assert shared.cancels(of_the_first) == [1]
    assert shared.cancels(*others, *shared.second) == [0] * (JOBS - 1)


def test_a_person_ends_tasks(airflow: LocalAirflow, shared: Shared) -> None:
    """A person who ends a task cancels its job once, whichever triggerer has it, even after a hand-over."""
    of_the_first, taken_over, *others = shared.first
    of_the_second, last = shared.second
    shared.end_by_a_person(of_the_first)
    shared.end_by_a_person(of_the_second)
    airflow.triggerer.kill()
    shared.wait_for_polls(taken_over, last, *others)
    shared.end_by_a_person(taken_over)
    shared.finish(last, *others)
    assert shared.run.submissions() == len(shared.run.jobs()) == JOBS
    assert shared.cancels(of_the_first, of_the_second, taken_over) == [1, 1, 1]
    assert shared.cancels(last, *others) == [0] * 3
