"""Who may cancel a job: a person. Each test acts on a run of its own; all runs are started at once."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from demo.processes import wait_until
from tests.e2e_airflow.conftest import TELLS_TRIGGERS

if TYPE_CHECKING:
    from tests.e2e_airflow.conftest import Run, Runs

LONG = {"outcome": "never"}

needs_a_trigger_that_is_told = pytest.mark.skipif(
    not TELLS_TRIGGERS,
    reason="before 3.3, no cancel is tried for a deferred task: none can fail",
)


@pytest.fixture(scope="module")
def started(runs: Runs) -> dict[str, Run]:
    """Deferred tasks, one for each test that needs one; they take no worker."""
    return {
        "mark failed": runs.start("deferred", **LONG),
        "mark success": runs.start("deferred", **LONG),
        "clear": runs.start("deferred", **LONG),
        "clear not durable": runs.start("deferred_not_durable", **LONG),
        "fail run": runs.start("deferred", **LONG),
        "mapped": runs.start("mapped", **LONG),
        "slow cancel": runs.start("deferred", cancel_seconds=6, **LONG),
        "keep": runs.start("deferred_keep", **LONG),
        "no cancel": runs.prepare("deferred", **LONG),
        "cancel fails": runs.prepare("deferred", **LONG),
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
    """Marking a deferred task as successful cancels its job, which nobody waits for any more."""
    run = started["mark success"]
    run.wait_until_watched()
    run.mark("success")
    run.check_abandoned(run.job()["id"])
    assert (run.state(), run.submissions()) == ("success", 1)


@pytest.mark.parametrize("how", ["clear", "clear not durable"])
def test_clear(started: dict[str, Run], how: str) -> None:
    """Clearing a deferred task stops its job and submits a new one, which is left alone."""
    run = started[how]
    run.wait_until_watched()
    run.clear()
    first, second = run.wait_for_jobs(2)
    run.check_abandoned(first["id"])
    run.wait_for("deferred")
    assert run.cancels(second["id"]) == 0
    assert run.submissions() == 2
    run.control.finish(second["id"], result={"second": True})
    assert run.wait_for("success") == "success"
    assert run.xcom() == {"second": True}


def test_fail_the_run(started: dict[str, Run]) -> None:
    """Marking a whole DAG run as failed cancels the jobs of its tasks."""
    run = started["fail run"]
    run.wait_until_watched()
    run.airflow.mark_run(run.dag_id, run.run_id, "failed")
    run.check_abandoned(run.job()["id"])
    assert run.submissions() == 1


def test_one_mapped_task(started: dict[str, Run]) -> None:
    """Ending one of several mapped tasks cancels its job alone."""
    run = started["mapped"]
    for index in range(3):
        run.wait_until_watched(index)
    jobs = {index: run.xcom("job_id", map_index=index) for index in range(3)}
    run.mark("failed", map_index=1)
    run.check_abandoned(jobs[1], map_index=1)
    assert [run.cancels(jobs[index]) for index in (0, 2)] == [0, 0]
    for index in (0, 2):
        run.control.finish(jobs[index])
        assert run.wait_for("success", map_index=index) == "success"


@needs_a_trigger_that_is_told
def test_a_slow_cancel(started: dict[str, Run]) -> None:
    """A cancel call that takes 6 s is not cut short, although Airflow interrupts `on_kill` after one."""
    run = started["slow cancel"]
    run.wait_until_watched()
    run.mark("failed")
    job = run.job()
    run.wait_for_end(job["id"], "cancelled")
    wait_until(lambda: "cancelled, since a user ended its task" in run.logs(), "the end of the cancel call")
    assert run.cancels(job["id"]) == 1


@needs_a_trigger_that_is_told
def test_cancel_on_kill_off(started: dict[str, Run]) -> None:
    """With `cancel_on_kill=False` the job goes on."""
    run = started["keep"]
    run.wait_until_watched()
    run.mark("failed")
    job = run.job()
    wait_until(lambda: "cancel_on_kill is off" in run.logs(), "the trigger's end")
    assert run.cancels(job["id"]) == 0
    assert run.job()["state"] in ("pending", "running")


@needs_a_trigger_that_is_told
def test_a_server_without_a_cancel_route(started: dict[str, Run]) -> None:
    """When the server cannot cancel, a warning names the job, and nothing hangs."""
    run = started["no cancel"]
    fault = run.control.fault("no_cancel", on="cancel", times=None, flow=run.flow)
    assert fault
    run.start()
    run.wait_until_watched()
    run.mark("failed")
    job = run.job()
    wait_until(lambda: run.said(f"Noukai job {job['id']} may still run"), "the warning")
    assert run.cancels(job["id"]) == 1


@needs_a_trigger_that_is_told
def test_a_cancel_that_fails(started: dict[str, Run]) -> None:
    """When cancelling fails, a warning names the job and what the server said."""
    run = started["cancel fails"]
    run.control.fault("status", on="cancel", times=None, flow=run.flow, status=403)
    run.start()
    run.wait_until_watched()
    run.mark("failed")
    job = run.job()
    wait_until(lambda: run.said(f"Noukai job {job['id']} may still run"), "the warning")


def test_clear_of_a_succeeded_task(started: dict[str, Run]) -> None:
    """A task that has succeeded and is cleared runs again, with a new job."""
    run = started["clear succeeded"]
    assert run.wait_for("success") == "success"
    (first,) = run.jobs()
    run.clear()
    _, second = run.wait_for_jobs(2)
    wait_until(lambda: run.xcom("job_id") == second["id"], "the new job's id")
    assert run.wait_for("success") == "success"
    assert run.xcom("job_id") == second["id"]
    assert second["id"] != first["id"]
    assert run.submissions() == 2


def test_mark_failed_on_the_worker(runs: Runs) -> None:
    """Marking a task as failed on a worker cancels its job, within the five seconds that there are."""
    run = runs.start("waiting", **LONG)
    run.wait_for("running")
    (job,) = run.wait_for_jobs(1)
    wait_until(lambda: run.xcom("job_url"), "the job's link")
    assert run.airflow.links(run.dag_id, run.run_id, "job") == {"Noukai job": run.xcom("job_url")}
    run.mark("failed")
    run.wait_for_end(job["id"], "cancelled")
    assert run.cancels(job["id"]) == 1


def test_mark_success_on_the_worker(runs: Runs) -> None:
    """A task that is marked as successful on a worker stays so, and its job is cancelled."""
    run = runs.start("waiting", **LONG)
    (job,) = run.wait_for_jobs(1)
    wait_until(lambda: run.xcom("job_id") == job["id"], "the job's id")
    run.mark("success")
    run.wait_for_end(job["id"], "cancelled")
    wait_until(
        lambda: "cancelled, since a user ended its task" in run.logs(), "the end of the task's process"
    )
    assert run.state() == "success"


def test_clear_on_the_worker(runs: Runs) -> None:
    """Clearing a task while it waits on a worker stops its job and submits a new one."""
    run = runs.start("waiting", **LONG)
    (first,) = run.wait_for_jobs(1)
    wait_until(lambda: run.xcom("job_id") == first["id"], "the job's id")
    run.clear()
    run.wait_for_end(first["id"], "cancelled")
    _, second = run.wait_for_jobs(2)
    run.control.finish(second["id"])
    assert run.wait_for("success") == "success"
    assert (run.submissions(), run.cancels(second["id"])) == (2, 0)


def test_cancel_on_kill_off_on_the_worker(runs: Runs) -> None:
    """With `cancel_on_kill=False` a task that is ended on a worker leaves its job alone."""
    run = runs.start("waiting_keep", **LONG)
    (job,) = run.wait_for_jobs(1)
    wait_until(lambda: run.xcom("job_id") == job["id"], "the job's id")
    run.mark("failed")
    wait_until(lambda: "cancel_on_kill is off" in run.logs(), "the end of the task's process")
    assert run.cancels(job["id"]) == 0


def test_a_cancel_that_fails_on_the_worker(runs: Runs) -> None:
    """When cancelling fails, cannot be done or takes too long, a warning names the job, and nothing hangs."""
    refused, unsupported = runs.prepare("waiting", **LONG), runs.prepare("waiting", **LONG)
    refused.control.fault("status", on="cancel", times=None, flow=refused.flow, status=403)
    unsupported.control.fault("no_cancel", on="cancel", times=None, flow=unsupported.flow)
    faulty = [refused.start(), unsupported.start(), runs.start("waiting", cancel_seconds=6, **LONG)]
    for run in faulty:
        (job,) = run.wait_for_jobs(1)
        wait_until(lambda run=run, job=job: run.xcom("job_id") == job["id"], "the job's id")
        run.mark("failed")
    for run in faulty:
        warning = f"Noukai job {run.job()['id']} of acme/tests/{run.flow} may run on"
        wait_until(lambda run=run, warning=warning: run.said(warning), "the warning")
        assert (run.state(), run.cancels(run.job()["id"])) == ("failed", 1)


def test_shutdown_of_the_worker(runs: Runs) -> None:
    """A worker that is shut down leaves the job alone, and the retry attaches to it."""
    run = runs.start("waiting_retry", **LONG)
    (job,) = run.wait_for_jobs(1)
    wait_until(lambda: run.xcom("job_id") == job["id"], "the job's id")
    os.kill(run.airflow.task_process(run.dag_id, run.run_id, "job"), signal.SIGTERM)
    wait_until(lambda: run.tries() == 2, "the retry")
    run.wait_until_attached()
    run.control.finish(job["id"], result={"kept": True})
    assert run.wait_for("success") == "success"
    assert run.xcom() == {"kept": True}
    assert (run.submissions(), run.cancels(job["id"])) == (1, 0)
