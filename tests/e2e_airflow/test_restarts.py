"""Processes that end, stall and come back. None of it cancels a job, and none of it submits a second one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from demo.processes import wait_until
from tests.e2e_airflow.conftest import TELLS_TRIGGERS

if TYPE_CHECKING:
    from demo.airflow_server import LocalAirflow
    from tests.e2e_airflow.conftest import Run, Runs

LONG = {"outcome": "never"}


@pytest.fixture
def triggerers(airflow: LocalAirflow) -> Iterator[LocalAirflow]:
    """The running Airflow, whose triggerers a test may disturb; afterwards one works again."""
    yield airflow
    for name, component in airflow.components.items():
        if name.startswith("triggerer-"):
            component.kill()
    airflow.triggerer.resume()
    if not airflow.triggerer.running:
        airflow.triggerer.start()


def wait_for_looks(run: Run, job_id: str, more: int = 2) -> None:
    """Wait until somebody looks at the job (again)."""
    seen = run.control.counts(job_id).get("poll", 0)
    wait_until(
        lambda: run.control.counts(job_id).get("poll", 0) >= seen + more, "looks at the job", timeout=60
    )


def finish_well(run: Run, job_id: str) -> None:
    """Let the job end, and check what comes of it."""
    run.control.finish(job_id, result={"whole": True})
    check_end(run, job_id)


def check_end(run: Run, job_id: str) -> None:
    """Check that the result arrives, after one submission and no cancel."""
    assert run.wait_for("success") == "success"
    assert run.xcom() == {"whole": True}
    assert (run.submissions(), run.cancels(job_id)) == (1, 0)


def test_triggerer_shut_down(runs: Runs, triggerers: LocalAirflow) -> None:
    """A triggerer that is shut down leaves its jobs alone, and the next one waits on."""
    run = runs.start("deferred", **LONG)
    run.wait_for("deferred")
    job_id = run.job()["id"]
    wait_for_looks(run, job_id)
    triggerers.triggerer.terminate()
    triggerers.triggerer.start()
    wait_for_looks(run, job_id)
    finish_well(run, job_id)


def test_triggerer_killed(runs: Runs, triggerers: LocalAirflow) -> None:
    """A triggerer that dies leaves its jobs alone, and the next one waits on; the job may end in between."""
    run = runs.start("deferred", **LONG)
    run.wait_for("deferred")
    job_id = run.job()["id"]
    wait_for_looks(run, job_id)
    triggerers.triggerer.kill()
    run.control.finish(job_id, result={"whole": True})
    triggerers.triggerer.start()
    check_end(run, job_id)


def test_hand_over_after_a_stall(runs: Runs, triggerers: LocalAirflow) -> None:
    """A triggerer that stalls and loses its jobs is told to kill them when it recovers, and does not.

    Before 3.3 it is not even told.
    """
    run = runs.start("deferred", **LONG)
    run.wait_for("deferred")
    job_id = run.job()["id"]
    wait_for_looks(run, job_id)
    triggerers.extra_triggerer()
    triggerers.triggerer.stall()
    seen = run.control.counts(job_id)["poll"]
    wait_until(
        lambda: run.control.counts(job_id)["poll"] > seen + 1, "the other triggerer's looks", timeout=60
    )
    triggerers.triggerer.resume()
    let_go = "its task still waits for it" if TELLS_TRIGGERS else "trigger completed"
    wait_until(lambda: let_go in run.logs(), "the first triggerer to let go", timeout=60)
    wait_for_looks(run, job_id)
    finish_well(run, job_id)


def test_mark_failed_while_the_triggerer_is_down(runs: Runs, triggerers: LocalAirflow) -> None:
    """A job whose task is ended while the triggerer is down for maintenance is cancelled afterwards.

    Before 3.3 it runs on.
    """
    run = runs.start("deferred", **LONG)
    run.wait_for("deferred")
    job_id = run.job()["id"]
    wait_for_looks(run, job_id)
    triggerers.triggerer.terminate()
    run.mark("failed")
    triggerers.triggerer.start()
    if TELLS_TRIGGERS:
        run.wait_for_end(job_id, "cancelled", timeout=60)
    else:
        another = runs.start("deferred", **LONG)
        another.wait_until_watched()
    assert (run.submissions(), run.cancels(job_id)) == (1, int(TELLS_TRIGGERS))


def test_clear_while_the_triggerer_is_down(runs: Runs, triggerers: LocalAirflow) -> None:
    """A job whose task is cleared while no triggerer runs is stopped all the same, by the task's next try.

    Before 3.3 that try does not know of it, and the job runs on.
    """
    run = runs.start("deferred", **LONG)
    run.wait_for("deferred")
    first = run.job()["id"]
    wait_for_looks(run, first)
    triggerers.triggerer.kill()
    run.clear()
    _, second = run.wait_for_jobs(2)
    if TELLS_TRIGGERS:
        run.wait_for_end(first, "cancelled")
    run.wait_for("deferred")
    triggerers.triggerer.start()
    wait_for_looks(run, second["id"])
    run.control.finish(second["id"])
    assert run.wait_for("success") == "success"
    assert (run.submissions(), run.cancels(first), run.cancels(second["id"])) == (2, int(TELLS_TRIGGERS), 0)


def test_airflows_own_limit_while_the_triggerer_is_down(runs: Runs, triggerers: LocalAirflow) -> None:
    """When Airflow itself ends a deferral, no trigger can cancel the job, so the task does."""
    run = runs.start("deferred_short_backstop", **LONG)
    run.wait_for("deferred")
    job_id = run.job()["id"]
    wait_for_looks(run, job_id)
    triggerers.triggerer.kill()
    assert run.wait_for("failed", timeout=90) == "failed"
    assert (run.submissions(), run.cancels(job_id), run.job()["state"]) == (1, 1, "cancelled")


def test_worker_killed_after_the_submission(runs: Runs) -> None:
    """A worker that dies between the submission and the deferral costs no second job: the retry attaches."""
    run = runs.start("deferred_inline_retry", **LONG)
    (job,) = run.wait_for_jobs(1)
    wait_until(lambda: run.xcom("job_id") == job["id"], "the job's id")
    os.kill(run.airflow.task_process(run.dag_id, run.run_id, "job"), signal.SIGKILL)
    run.wait_until_attached()
    finish_well(run, job["id"])
    assert run.tries() == 2


def test_worker_killed_with_a_task_that_is_not_durable(runs: Runs) -> None:
    """With `durable=False`, the retry after a crash submits a new job, and the first one is left alone."""
    run = runs.start("waiting_not_durable", **LONG)
    (first,) = run.wait_for_jobs(1)
    wait_until(lambda: run.xcom("job_id") == first["id"], "the job's id")
    os.kill(run.airflow.task_process(run.dag_id, run.run_id, "job"), signal.SIGKILL)
    _, second = run.wait_for_jobs(2)
    run.control.finish(second["id"], result={"second": True})
    assert run.wait_for("success") == "success"
    assert run.xcom() == {"second": True}
    assert (run.submissions(), run.cancels(first["id"]), run.cancels(second["id"])) == (2, 0, 0)


def test_worker_killed_before_the_answer(runs: Runs) -> None:
    """A worker that dies before it learns the job's id costs no second job: the retry finds it."""
    run = runs.prepare("deferred_retry", **LONG)
    run.control.fault("slow", on="submit", times=1, flow=run.flow, seconds=30)
    run.start()
    run.wait_for("running")
    wait_until(lambda: run.submissions() == 1, "the request to submit")
    os.kill(run.airflow.task_process(run.dag_id, run.run_id, "job"), signal.SIGKILL)
    run.wait_for("deferred")
    assert "found by its submission" in run.logs()
    finish_well(run, run.job()["id"])


def test_answer_lost_with_a_job(runs: Runs) -> None:
    """When the answer to a submission is lost, the job is found, and nothing is sent again."""
    run = runs.prepare("deferred", **LONG)
    run.control.fault("drop_after", on="submit", times=1, flow=run.flow)
    run.start()
    run.wait_for("deferred")
    finish_well(run, run.job()["id"])


def test_answer_lost_without_a_job(runs: Runs) -> None:
    """When a submission is lost before it made a job, it is sent again, and one job comes of it."""
    run = runs.prepare("deferred", **LONG)
    run.control.fault("drop_before", on="submit", times=1, flow=run.flow)
    run.start()
    run.wait_for("deferred")
    job = run.job()
    run.control.finish(job["id"])
    assert run.wait_for("success") == "success"
    assert (len(run.jobs()), run.cancels(job["id"])) == (1, 0)


@pytest.mark.parametrize("how", ["deferred_deadline", "waiting_deadline"])
def test_deadline(runs: Runs, how: str) -> None:
    """A job that does not end within `timeout` is cancelled and fails its task; a retry submits anew."""
    run = runs.start(how, **LONG)
    assert run.wait_for("failed") == "failed"
    tries = run.tries()
    assert tries == (2 if how == "deferred_deadline" else 1)
    assert len(run.jobs()) == run.submissions() == tries
    assert {job["state"] for job in run.jobs()} == {"cancelled"}


def test_deadline_without_a_cancel(runs: Runs) -> None:
    """With `cancel_on_timeout=False` the job goes on, and the retry waits for it again."""
    run = runs.start("deferred_deadline_keep", **LONG)
    (job,) = run.wait_for_jobs(1)
    run.wait_until_attached()
    finish_well(run, job["id"])
    assert run.tries() == 2


@pytest.mark.parametrize("how", ["deferred_execution_timeout", "waiting_execution_timeout"])
def test_execution_timeout(runs: Runs, how: str) -> None:
    """`execution_timeout` holds for the job too, also while its task is deferred: it is cancelled."""
    run = runs.start(how, **LONG)
    assert run.wait_for("failed") == "failed"
    job = run.job()
    assert (run.submissions(), run.cancels(job["id"]), job["state"]) == (1, 1, "cancelled")
