"""Triggerers, schedulers and API servers that end and return. No job is cancelled or submitted again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from devtools.processes import wait_until
from tests.e2e_airflow.conftest import AIRFLOW

if TYPE_CHECKING:
    from devtools.airflow_server import LocalAirflow
    from tests.e2e_airflow.conftest import Runs

LONG = {"outcome": "never"}

# What is logged when a trigger leaves a triggerer for another: by Airflow, and in 3.3 by the trigger itself.
LETS_GO = {(3, 3): "its task still waits for it"}.get(
    AIRFLOW, "trigger completed" if AIRFLOW < (3, 3) else "dropping it without on_kill"
)


@pytest.fixture
def triggerers(airflow: LocalAirflow) -> Iterator[LocalAirflow]:
    """The running Airflow, which a test may disturb; one process of each kind runs again afterwards."""
    yield airflow
    for name, component in airflow.components.items():
        if name.startswith("triggerer-"):
            component.kill()
    airflow.triggerer.resume()
    for component in (airflow.triggerer, airflow.scheduler, airflow.api_server):
        if not component.running:
            component.start()


def test_triggerer_shut_down(runs: Runs, triggerers: LocalAirflow) -> None:
    """A triggerer that is shut down leaves its jobs running, and the next one waits for them."""
    run = runs.start("deferred", **LONG)
    run.wait_for("deferred")
    job_id = run.job()["id"]
    run.wait_for_polls(job_id)
    triggerers.triggerer.terminate()
    triggerers.triggerer.start()
    run.wait_for_polls(job_id)
    run.finish_well(job_id)


def test_triggerer_killed(runs: Runs, triggerers: LocalAirflow) -> None:
    """After a crash, the next triggerer waits for the jobs, which may have ended by then."""
    run = runs.start("deferred", **LONG)
    run.wait_for("deferred")
    job_id = run.job()["id"]
    run.wait_for_polls(job_id)
    triggerers.triggerer.kill()
    run.control.finish(job_id, result={"whole": True})
    triggerers.triggerer.start()
    run.check_end(job_id)


def test_hand_over_after_a_stall(runs: Runs, triggerers: LocalAirflow) -> None:
    """A triggerer that stalls and loses its jobs does not cancel them when it recovers.

    Airflow 3.3 calls `on_kill` in this case.
    """
    run = runs.start("deferred", **LONG)
    run.wait_for("deferred")
    job_id = run.job()["id"]
    run.wait_for_polls(job_id)
    triggerers.extra_triggerer()
    triggerers.triggerer.stall()
    seen = run.control.counts(job_id)["poll"]
    wait_until(lambda: run.control.counts(job_id)["poll"] > seen + 1, "the other triggerer's polls")
    triggerers.triggerer.resume()
    wait_until(lambda: LETS_GO in run.logs(), "the first triggerer to let go")
    run.wait_for_polls(job_id)
    run.finish_well(job_id)


def test_mark_failed_while_the_triggerer_is_down(runs: Runs, triggerers: LocalAirflow) -> None:
    """The job of a task that is ended while the triggerer restarts is cancelled."""
    run = runs.start("deferred", **LONG)
    run.wait_for("deferred")
    job_id = run.job()["id"]
    run.wait_for_polls(job_id)
    triggerers.triggerer.terminate()
    run.mark("failed")
    triggerers.triggerer.start()
    run.wait_for_end(job_id, "cancelled")
    assert (run.submissions(), run.cancels(job_id)) == (1, 1)


@pytest.mark.parametrize("state", ["failed", "success"])
def test_mark_while_the_triggerer_is_dead(runs: Runs, triggerers: LocalAirflow, state: str) -> None:
    """The job of a task that is ended after its triggerer has died is cancelled by the API server."""
    run = runs.start("deferred", **LONG)
    run.wait_for("deferred")
    job_id = run.job()["id"]
    run.wait_for_polls(job_id)
    triggerers.triggerer.kill()
    run.mark(state)
    run.wait_for_end(job_id, "cancelled")
    assert (run.state(), run.submissions(), run.cancels(job_id)) == (state, 1, 1)


def test_fail_the_run_before_the_trigger_has_started(runs: Runs, triggerers: LocalAirflow) -> None:
    """The job of a run that is failed before any trigger waits for it is cancelled by the API server."""
    triggerers.triggerer.kill()
    run = runs.start("deferred", **LONG)
    run.wait_for("deferred")
    run.airflow.mark_run(run.dag_id, run.run_id, "failed")
    job_id = run.job()["id"]
    run.wait_for_end(job_id, "cancelled")
    assert (run.submissions(), run.cancels(job_id)) == (1, 1)


def test_clear_while_the_triggerer_is_down(runs: Runs, triggerers: LocalAirflow) -> None:
    """The job of a task that is cleared while no triggerer runs is cancelled by the task's next try."""
    run = runs.start("deferred", **LONG)
    run.wait_for("deferred")
    first = run.job()["id"]
    run.wait_for_polls(first)
    triggerers.triggerer.kill()
    run.clear()
    _, second = run.wait_for_jobs(2)
    run.wait_for_end(first, "cancelled")
    run.wait_for("deferred")
    triggerers.triggerer.start()
    run.wait_for_polls(second["id"])
    run.control.finish(second["id"])
    assert run.wait_for("success") == "success"
    assert (run.submissions(), run.cancels(first), run.cancels(second["id"])) == (2, 1, 0)


def test_airflows_own_limit_while_the_triggerer_is_down(runs: Runs, triggerers: LocalAirflow) -> None:
    """If Airflow itself ends a deferral, no trigger can cancel the job, so the task does."""
    triggerers.triggerer.kill()
    run = runs.start("deferred_short_backstop", **LONG)
    assert run.wait_for("failed") == "failed"
    job = run.job()
    assert (run.submissions(), run.cancels(job["id"]), job["state"]) == (1, 1, "cancelled")


def test_scheduler_killed(runs: Runs, triggerers: LocalAirflow) -> None:
    """After a crash of the scheduler, the next one resumes a deferred task whose job has ended meanwhile."""
    run = runs.start("deferred", **LONG)
    run.wait_for("deferred")
    job_id = run.job()["id"]
    run.wait_for_polls(job_id)
    triggerers.scheduler.kill()
    run.control.finish(job_id, result={"whole": True})
    triggerers.scheduler.start()
    run.check_end(job_id)


def test_api_server_killed(runs: Runs, triggerers: LocalAirflow) -> None:
    """If a job ends while the API server is down, a retry of its task fetches the result."""
    run = runs.start("deferred_many_retries", **LONG)
    run.wait_until_watched()
    job_id = run.job()["id"]
    triggerers.api_server.kill()
    run.control.finish(job_id, result={"whole": True})
    # Airflow then starts the task, which it cannot do without the API server.
    wait_until(lambda: "Trigger fired event" in run.logs(), "the trigger's event")
    triggerers.api_server.start()
    wait_until(triggerers.responds, "the API server")
    run.check_end(job_id)
