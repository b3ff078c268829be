"""Triggerers, schedulers and API servers that end and return. No job is cancelled or submitted again.

All runs are started at once, and those that lose their triggerer lose it together. Their tests follow the
triggerer from one event to the next, in the order of this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from devtools.processes import wait_until
from tests.e2e_airflow.conftest import AIRFLOW

if TYPE_CHECKING:
    from devtools.airflow_server import LocalAirflow
    from tests.e2e_airflow.conftest import Run, Runs

LONG = {"outcome": "never"}

# What is logged when a trigger leaves a triggerer for another: by Airflow, and in 3.3 by the trigger itself.
LETS_GO = {(3, 3): "its task still waits for it"}.get(
    AIRFLOW, "trigger completed" if AIRFLOW < (3, 3) else "dropping it without on_kill"
)


@pytest.fixture(scope="module")
def started(runs: Runs) -> dict[str, Run]:
    """Deferred tasks whose triggers run: one for each test that disturbs them."""
    started = {
        name: runs.start("deferred", **LONG)
        for name in ("stall", "shut down", "ended", "killed", "failed", "success", "cleared", "scheduler")
    }
    started["API server"] = runs.start("deferred_many_retries", **LONG)
    for run in started.values():
        run.wait_until_watched()
    return started


def wait_for_triggers(*runs: Run) -> None:
    """Wait until the triggers of tasks poll."""
    for run in runs:
        run.wait_for_polls(run.job()["id"])


@pytest.fixture
def disturbed(airflow: LocalAirflow) -> Iterator[LocalAirflow]:
    """The running Airflow, which a test may disturb; one process of each kind runs again afterwards."""
    yield airflow
    restore(airflow)


def restore(airflow: LocalAirflow) -> None:
    """Let one process of each kind run."""
    for name, component in airflow.components.items():
        if name.startswith("triggerer-"):
            component.kill()
    airflow.triggerer.resume()
    for component in (airflow.triggerer, airflow.scheduler, airflow.api_server, airflow.execution_api):
        if not component.running:
            component.start()


def test_hand_over_after_a_stall(started: dict[str, Run], disturbed: LocalAirflow) -> None:
    """A triggerer that stalls and loses its jobs does not cancel them when it recovers.

    Airflow 3.3 calls `on_kill` in this case.
    """
    run = started["stall"]
    job_id = run.job()["id"]
    wait_for_triggers(run)
    disturbed.extra_triggerer()
    disturbed.triggerer.stall()
    seen = run.control.counts(job_id)["poll"]
    wait_until(lambda: run.control.counts(job_id)["poll"] > seen + 1, "the other triggerer's polls")
    disturbed.triggerer.resume()
    wait_until(lambda: LETS_GO in run.logs(), "the first triggerer to let go")
    run.wait_for_polls(job_id)
    run.finish_well(job_id)


@pytest.fixture(scope="module")
def restarted(airflow: LocalAirflow, started: dict[str, Run]) -> dict[str, Run]:
    """Tasks whose triggerer was shut down and started again. A user ended one of them in between."""
    wait_for_triggers(started["shut down"], started["ended"])
    airflow.triggerer.terminate()
    started["ended"].mark("failed")
    airflow.triggerer.start()
    return started


def test_triggerer_shut_down(restarted: dict[str, Run]) -> None:
    """A triggerer that is shut down leaves its jobs running, and the next one waits for them."""
    run = restarted["shut down"]
    job_id = run.job()["id"]
    run.wait_for_polls(job_id)
    run.finish_well(job_id)


def test_mark_failed_while_the_triggerer_is_down(restarted: dict[str, Run]) -> None:
    """The job of a task that is ended while the triggerer restarts is cancelled."""
    run = restarted["ended"]
    run.check_abandoned(run.job()["id"])
    assert run.submissions() == 1


@pytest.fixture(scope="module")
def dead(airflow: LocalAirflow, runs: Runs, started: dict[str, Run]) -> Iterator[dict[str, Run]]:
    """What users and jobs do while there is no triggerer, after it has crashed."""
    wait_for_triggers(*(started[name] for name in ("killed", "failed", "success", "cleared")))
    airflow.triggerer.kill()
    started["killed"].control.finish(started["killed"].job()["id"], result={"whole": True})
    for state in ("failed", "success"):
        started[state].mark(state)
    started["cleared"].clear()
    unwatched, limited = runs.start("deferred", **LONG), runs.start("deferred_short_backstop", **LONG)
    unwatched.wait_for("deferred")
    airflow.mark_run(unwatched.dag_id, unwatched.run_id, "failed")
    yield {**started, "unwatched": unwatched, "limited": limited}
    restore(airflow)


@pytest.mark.parametrize("state", ["failed", "success"])
def test_mark_while_the_triggerer_is_dead(dead: dict[str, Run], state: str) -> None:
    """The job of a task that is ended after its triggerer has died is cancelled by the API server."""
    run = dead[state]
    job_id = run.job()["id"]
    run.wait_for_end(job_id, "cancelled")
    assert (run.state(), run.submissions(), run.cancels(job_id)) == (state, 1, 1)


def test_fail_the_run_before_the_trigger_has_started(dead: dict[str, Run]) -> None:
    """The job of a run that is failed before any trigger waits for it is cancelled by the API server."""
    run = dead["unwatched"]
    job_id = run.job()["id"]
    run.wait_for_end(job_id, "cancelled")
    assert (run.submissions(), run.cancels(job_id)) == (1, 1)


def test_airflows_own_limit_while_the_triggerer_is_down(dead: dict[str, Run]) -> None:
    """If Airflow itself ends a deferral, no trigger can cancel the job, so the task does."""
    run = dead["limited"]
    assert run.wait_for("failed") == "failed"
    job = run.job()
    assert (run.submissions(), run.cancels(job["id"]), job["state"]) == (1, 1, "cancelled")


def test_clear_while_the_triggerer_is_down(dead: dict[str, Run]) -> None:
    """The job of a task that is cleared while no triggerer runs is cancelled by the task's next try."""
    run = dead["cleared"]
    first, second = run.wait_for_jobs(2)
    run.wait_for_end(first["id"], "cancelled")
    run.wait_for("deferred")
    restore(run.airflow)
    run.wait_for_polls(second["id"])
    run.control.finish(second["id"])
    assert run.wait_for("success") == "success"
    assert (run.submissions(), run.cancels(first["id"]), run.cancels(second["id"])) == (2, 1, 0)


def test_triggerer_killed(dead: dict[str, Run]) -> None:
    """After a crash, the next triggerer waits for the jobs, which may have ended by then."""
    run = dead["killed"]
    restore(run.airflow)
    run.check_end(run.job()["id"])


def test_scheduler_killed(started: dict[str, Run], disturbed: LocalAirflow) -> None:
    """After a crash of the scheduler, the next one resumes a deferred task whose job has ended meanwhile."""
    run = started["scheduler"]
    restore(disturbed)
    wait_for_triggers(run)
    disturbed.scheduler.kill()
    job_id = run.job()["id"]
    run.control.finish(job_id, result={"whole": True})
    disturbed.scheduler.start()
    run.check_end(job_id)


def test_api_server_killed(started: dict[str, Run], disturbed: LocalAirflow) -> None:
    """If a job ends while the API servers are down, a retry of its task fetches the result."""
    run = started["API server"]
    wait_for_triggers(run)
    job_id = run.job()["id"]
    servers = (disturbed.api_server, disturbed.execution_api)
    for server in servers:
        server.kill()
    run.control.finish(job_id, result={"whole": True})
    # Airflow then starts the task, which it cannot do without the API server.
    wait_until(lambda: "Trigger fired event" in run.logs(), "the trigger's event")
    for server in servers:
        server.start()
    wait_until(disturbed.responds, "the API servers")
    run.check_end(job_id)
