"""Only a user's act cancels a job. Each test has its own run; all runs are started at once, and all tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devtools.processes import wait_until
from tests.e2e_airflow.conftest import AIRFLOW, NOTIFIES_TRIGGERS

if TYPE_CHECKING:
    from tests.e2e_airflow.conftest import Run, Runs


LONG = {"outcome": "never"}

needs_notified_triggers = pytest.mark.skipif(
    not NOTIFIES_TRIGGERS,
    reason="before 3.3, the API server cancels, which does not write to the task's log",
)


def _kept(runs: Runs) -> dict[str, Run]:
    if AIRFLOW < (3, 4):
        return {}
    return {
        "keep the state, deferred": runs.start("deferred", **LONG),
        "keep the state, on a worker": runs.start("waiting", **LONG),
    }


@pytest.fixture(scope="module")
def started(runs: Runs) -> dict[str, Run]:
    """Deferred tasks, which take no worker: one for each test that needs one."""
    return {
        "mark failed": runs.start("deferred", **LONG),
        "mark success": runs.start("deferred", **LONG),
        "clear": runs.start("deferred", **LONG),
        "two clears": runs.start("deferred", **LONG),
        **_kept(runs),
        "clear not durable": runs.start("deferred_not_durable", **LONG),
        "fail run": runs.start("deferred", **LONG),
        "mapped": runs.start("mapped", **LONG),
        "slow cancel": runs.start("deferred", cancel_seconds=6, **LONG),
        "keep": runs.start("deferred_keep", **LONG),
        "clear and keep": runs.start("deferred_keep", **LONG),
        "no cancel": runs.prepare("deferred", **LONG),
        "cancel fails": runs.prepare("deferred", **LONG),
        "paused, completed": runs.start("deferred_paused", **LONG),
        "paused, cleared": runs.start("deferred_paused", **LONG),
        "clear succeeded": runs.start("deferred", after_seconds=8),
    }


def test_mark_failed(started: dict[str, Run]) -> None:
    """Marking a deferred task as failed cancels its job."""
    run = started["mark failed"]
    run.wait_until_watched()
    assert run.airflow.links(run.dag_id, run.run_id, "job") == {"Noukai job": run.xcom("job_url")}
    run.mark("failed")
    run.check_abandoned(run.job()["id"])
    assert (run.state(), run.submissions()) == ("failed", 1)


def test_mark_success(started: dict[str, Run]) -> None:
    """Marking a deferred task as successful cancels its job."""
    run = started["mark success"]
    run.wait_until_watched()
    run.mark("success")
    run.check_abandoned(run.job()["id"])
    assert (run.state(), run.submissions()) == ("success", 1)


@pytest.mark.parametrize("how", ["clear", "clear not durable"])
def test_clear(started: dict[str, Run], how: str) -> None:
    """Clearing a deferred task cancels its job and submits a new one, which is not cancelled."""
    run = started[how]
    run.wait_until_watched()
    run.clear()
    first, second = run.wait_for_jobs(2)
    run.wait_for_end(first["id"], "cancelled")
    run.wait_for("deferred")
    assert run.cancels(second["id"]) == 0
    assert run.submissions() == 2
    run.control.finish(second["id"], result={"second": True})
    assert run.wait_for("success") == "success"
    assert run.xcom() == {"second": True}
    # The new try cancels it, and so does the old trigger if the database does not reuse the ids of triggers.
    assert run.cancels(first["id"]) in (1, 2)


def test_two_clears_in_a_row(started: dict[str, Run]) -> None:
    """Clearing a deferred task twice cancels its job, and leaves one new job running."""
    run = started["two clears"]
    run.wait_until_watched()
    run.clear()
    run.clear()
    run.wait_until_settled()
    run.wait_for_end(run.jobs()[0]["id"], "cancelled")
    (alive,) = run.alive_jobs()
    assert alive == run.xcom("job_id")
    run.control.finish(alive, result={"last": True})
    assert run.wait_for("success") == "success"
    assert run.xcom() == {"last": True}


@pytest.mark.skipif(AIRFLOW < (3, 4), reason="before 3.4, a user cannot keep the state of a cleared task")
@pytest.mark.parametrize("where", ["deferred", "on a worker"])
def test_clear_that_keeps_the_state(started: dict[str, Run], where: str) -> None:
    """If a user clears a task and keeps its state, the new try attaches to the job."""
    run = started[f"keep the state, {where}"]
    if where == "deferred":
        run.wait_until_watched()
        job_id = run.job()["id"]
    else:
        job_id = run.wait_until_waiting()
    run.airflow.clear(run.dag_id, run.run_id, run.task_id, keep_task_state=True)
    run.wait_until_attached()
    run.wait_for_polls(job_id)
    run.finish_well(job_id)


def test_clear_with_cancel_on_kill_off(started: dict[str, Run]) -> None:
    """With `cancel_on_kill=False` a cleared task submits a new job, and its old one is left running."""
    run = started["clear and keep"]
    run.wait_until_watched()
    run.clear()
    first, second = run.wait_for_jobs(2)
    run.wait_for("deferred")
    run.control.finish(second["id"], result={"second": True})
    assert run.wait_for("success") == "success"
    assert run.xcom() == {"second": True}
    assert (run.submissions(), run.cancels(first["id"]), run.cancels(second["id"])) == (2, 0, 0)
    assert run.jobs()[0]["state"] in ("pending", "running")


def test_fail_the_run(started: dict[str, Run]) -> None:
    """Marking a whole DAG run as failed cancels the jobs of its tasks."""
    run = started["fail run"]
    run.wait_until_watched()
    run.airflow.mark_run(run.dag_id, run.run_id, "failed")
    run.check_abandoned(run.job()["id"])
    assert run.submissions() == 1


def test_one_mapped_task(started: dict[str, Run]) -> None:
    """Ending one of several mapped tasks cancels only its job."""
    run = started["mapped"]
    for index in range(3):
        run.wait_until_watched(index)
    jobs = {index: run.xcom("job_id", map_index=index) for index in range(3)}
    run.mark("failed", map_index=1)
    run.check_abandoned(jobs[1])
    assert [run.cancels(jobs[index]) for index in (0, 2)] == [0, 0]
    for index in (0, 2):
        run.control.finish(jobs[index])
        assert run.wait_for("success", map_index=index) == "success"


def test_a_slow_cancel(started: dict[str, Run]) -> None:
    """A cancel request of 6 s completes, although Airflow interrupts `on_kill` after one."""
    run = started["slow cancel"]
    run.wait_until_watched()
    run.mark("failed")
    job = run.job()
    run.wait_for_end(job["id"], "cancelled")
    if NOTIFIES_TRIGGERS:
        wait_until(lambda: "cancelled (a user ended its task)" in run.logs(), "the cancel to complete")
    run.check_abandoned(job["id"])


@needs_notified_triggers
def test_cancel_on_kill_off(started: dict[str, Run]) -> None:
    """With `cancel_on_kill=False` the job is left running."""
    run = started["keep"]
    run.wait_until_watched()
    run.mark("failed")
    job = run.job()
    wait_until(lambda: "cancel_on_kill is off" in run.logs(), "the trigger's end")
    assert run.cancels(job["id"]) == 0
    assert run.job()["state"] in ("pending", "running")


@needs_notified_triggers
def test_a_server_without_a_cancel_route(started: dict[str, Run]) -> None:
    """If the server cannot cancel jobs, a warning names the job, and nothing hangs."""
    run = started["no cancel"]
    fault = run.control.fault("no_cancel", on="cancel", times=None, flow=run.flow)
    assert fault
    run.start()
    run.wait_until_watched()
    run.mark("failed")
    job = run.job()
    run.wait_until_said(f"Noukai job {job['id']} of {job['flow']}: cancel failed")
    assert run.cancels(job["id"]) in (1, 2)  # the API server tries once more, since the job still runs


@needs_notified_triggers
def test_a_cancel_that_fails(started: dict[str, Run]) -> None:
    """If a cancel fails, a warning names the job and the server's message."""
    run = started["cancel fails"]
    run.control.fault("status", on="cancel", times=None, flow=run.flow, status=403)
    run.start()
    run.wait_until_watched()
    run.mark("failed")
    job = run.job()
    run.wait_until_said(f"Noukai job {job['id']} of {job['flow']}: cancel failed")


def test_clear_of_a_succeeded_task(started: dict[str, Run]) -> None:
    """A task that is cleared after its success runs again, with a new job."""
    run = started["clear succeeded"]
    assert run.wait_for("success") == "success"
    (first,) = run.jobs()
    # A scheduler that ends the run at this moment undoes a clear.
    wait_until(lambda: run.airflow.run_state(run.dag_id, run.run_id) == "success", "the end of the run")
    run.clear()
    _, second = run.wait_for_jobs(2)
    wait_until(lambda: run.xcom("job_id") == second["id"], "the new job's id")
    assert run.wait_for("success") == "success"
    assert run.xcom("job_id") == second["id"]
    assert second["id"] != first["id"]
    assert (run.submissions(), run.cancels(first["id"]), run.cancels(second["id"])) == (2, 0, 0)


def test_a_paused_dag(started: dict[str, Run]) -> None:
    """While a DAG is paused, its tasks do not continue; afterwards each has its result, or a new job."""
    completed, cleared = started["paused, completed"], started["paused, cleared"]
    for run in (completed, cleared):
        run.wait_until_watched()
    airflow, dag_id = completed.airflow, completed.dag_id
    airflow.pause(dag_id)
    cleared.clear()
    job_id = completed.job()["id"]
    completed.control.finish(job_id, result={"whole": True})
    completed.wait_for("scheduled")
    airflow.pause(dag_id, paused=False)
    completed.check_end(job_id)
    first, second = cleared.wait_for_jobs(2)
    cleared.wait_for_end(first["id"], "cancelled")
    cleared.control.finish(second["id"])
    assert cleared.wait_for("success") == "success"
    assert (cleared.submissions(), cleared.cancels(second["id"])) == (2, 0)
