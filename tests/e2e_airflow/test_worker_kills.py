"""Signals to a task that waits on a worker. A kill by a user cancels its job, a shutdown does not.

All runs are started at once; each test acts on its own.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from devtools.processes import wait_until

if TYPE_CHECKING:
    from tests.e2e_airflow.conftest import Run, Runs

LONG = {"outcome": "never"}


@pytest.fixture(scope="module")
def started(runs: Runs) -> dict[str, Run]:
    """Tasks on workers, one for each test."""
    rejected, unsupported, submitting = (runs.prepare("waiting", **LONG) for _ in range(3))
    rejected.control.fault("status", on="cancel", times=None, flow=rejected.flow, status=403)
    unsupported.control.fault("no_cancel", on="cancel", times=None, flow=unsupported.flow)
    submitting.control.fault("slow", on="submit", times=1, flow=submitting.flow, seconds=4)
    return {
        # The signal must come before the response.
        "submitting": submitting,
        "mark failed": runs.start("waiting", **LONG),
        "mark success": runs.start("waiting", **LONG),
        "clear": runs.start("waiting", **LONG),
        "two clears": runs.start("waiting", **LONG),
        "clear inline": runs.start("deferred_inline", **LONG),
        "keep": runs.start("waiting_keep", **LONG),
        "shutdown": runs.start("waiting_retry", **LONG),
        "cancel rejected": rejected.start(),
        "cancel unsupported": unsupported.start(),
        "cancel slow": runs.start("waiting", cancel_seconds=6, **LONG),
    }


def test_mark_failed(started: dict[str, Run]) -> None:
    """Marking a task as failed cancels its job, within the five seconds that there are."""
    run = started["mark failed"]
    job_id = run.wait_until_waiting()
    link = wait_until(
        lambda: run.airflow.links(run.dag_id, run.run_id, "job")["Noukai job"], "the job's link"
    )
    assert link == run.xcom("job_url")
    run.mark("failed")
    run.wait_for_end(job_id, "cancelled")
    assert (run.submissions(), run.cancels(job_id)) == (1, 1)


def test_mark_success(started: dict[str, Run]) -> None:
    """A task that is marked as successful stays successful, and its job is cancelled."""
    run = started["mark success"]
    job_id = run.wait_until_waiting()
    run.mark("success")
    run.wait_for_end(job_id, "cancelled")
    run.wait_until_said("cancelled (a user ended its task)")
    assert (run.state(), run.submissions(), run.cancels(job_id)) == ("success", 1, 1)


def test_clear(started: dict[str, Run]) -> None:
    """Clearing a task cancels its job and submits a new one."""
    run = started["clear"]
    first = run.wait_until_waiting()
    run.clear()
    run.wait_for_end(first, "cancelled")
    _, second = run.wait_for_jobs(2)
    run.control.finish(second["id"])
    assert run.wait_for("success") == "success"
    assert (run.submissions(), run.cancels(first), run.cancels(second["id"])) == (2, 1, 0)


@pytest.mark.parametrize("how", ["two clears", "clear inline"])
def test_clears_at_special_moments(started: dict[str, Run], how: str) -> None:
    """A task that is cleared twice at once, or shortly before it defers, has one new job."""
    run = started[how]
    first = run.wait_until_waiting()
    run.clear()
    if how == "two clears":
        run.clear()
    run.wait_for_end(first, "cancelled")
    run.wait_for_jobs(2)
    wait_until(lambda: run.alive_jobs() == [run.xcom("job_id")], "the new job's id")
    (alive,) = run.alive_jobs()
    run.control.finish(alive, result={"last": True})
    assert run.wait_for("success") == "success"
    assert run.xcom() == {"last": True}
    assert run.cancels(alive) == 0


def test_cancel_on_kill_off(started: dict[str, Run]) -> None:
    """With `cancel_on_kill=False` the job of a killed task is left running."""
    run = started["keep"]
    job_id = run.wait_until_waiting()
    run.mark("failed")
    run.wait_until_said("cancel_on_kill is off")
    assert (run.submissions(), run.cancels(job_id)) == (1, 0)


@pytest.mark.parametrize("fault", ["rejected", "unsupported", "slow"])
def test_a_cancel_that_fails(started: dict[str, Run], fault: str) -> None:
    """If a cancel fails, is unsupported or takes too long, a warning names the job, and nothing hangs."""
    run = started[f"cancel {fault}"]
    job_id = run.wait_until_waiting()
    run.mark("failed")
    run.wait_until_said(f"Noukai job {job_id} of acme/tests/{run.flow}: cancel failed")
    assert (run.state(), run.submissions(), run.cancels(job_id)) == ("failed", 1, 1)


def test_mark_failed_during_the_submission(started: dict[str, Run]) -> None:
    """A task that is marked as failed during its submission cancels the resulting job."""
    run = started["submitting"].start()
    wait_until(run.submissions, "the request to submit")
    run.mark("failed")
    (job,) = run.wait_for_jobs(1)
    run.wait_for_end(job["id"], "cancelled")
    assert (run.state(), run.submissions(), run.cancels(job["id"])) == ("failed", 1, 1)


def test_shutdown(started: dict[str, Run]) -> None:
    """A worker that is shut down leaves the job running, and the retry attaches to it."""
    run = started["shutdown"]
    job_id = run.wait_until_waiting()
    run.end_process(signal.SIGTERM)
    wait_until(lambda: run.tries() == 2, "the retry")
    run.wait_until_attached()
    run.finish_well(job_id)
