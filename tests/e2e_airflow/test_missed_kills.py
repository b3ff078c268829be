"""A user's acts on tasks whose process cannot act: the API server cancels the job in its place.

All tasks are marked at once, since the API server gives each process half a minute.
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
def marked(runs: Runs) -> dict[str, Run]:
    """Tasks that were marked while their process was stopped, or while they waited for a retry."""
    stopped = {
        "failed": runs.start("waiting", **LONG),
        "success": runs.start("waiting_not_durable", **LONG),
        "run failed": runs.start("waiting", **LONG),
    }
    ended = {
        "failed before a retry": runs.start("waiting_late_retry", **LONG),
        "run failed before a retry": runs.start("waiting_late_retry", **LONG),
    }
    submitting = runs.prepare("waiting", **LONG)
    submitting.control.fault("slow", on="submit", times=1, flow=submitting.flow, seconds=4)
    for run in (*stopped.values(), *ended.values()):
        run.wait_until_waiting()
    for what, run in stopped.items():
        run.end_process(signal.SIGSTOP)
        mark(run, what)
    for run in ended.values():
        run.end_process(signal.SIGTERM)
    for what, run in ended.items():
        run.wait_for("up_for_retry")
        mark(run, what)
    submitting.start()
    wait_until(submitting.submissions, "the request to submit")
    submitting.end_process(signal.SIGSTOP)
    submitting.mark("failed")
    return {**stopped, **ended, "submitting": submitting}


@pytest.mark.parametrize(("what", "state"), [("failed",) * 2, ("success",) * 2, ("run failed", "failed")])
def test_a_worker_that_cannot_act(marked: dict[str, Run], what: str, state: str) -> None:
    """If the process of a marked task is killed before it can act, the API server cancels the job."""
    check_cancelled(marked[what], state)


def test_a_worker_that_cannot_act_during_the_submission(marked: dict[str, Run]) -> None:
    """If the process of a marked task is killed before it knows its job, the API server finds the job."""
    check_cancelled(marked["submitting"], "failed")


@pytest.mark.parametrize(("what", "state"), [("failed", "failed"), ("run failed", "skipped")])
def test_mark_failed_before_a_retry(marked: dict[str, Run], what: str, state: str) -> None:
    """The job that a retry would attach to is cancelled if a user ends the task before that."""
    check_cancelled(marked[f"{what} before a retry"], state)


def mark(run: Run, what: str) -> None:
    """Mark the task, or its whole run, as a user does."""
    if what.startswith("run failed"):
        run.airflow.mark_run(run.dag_id, run.run_id, "failed")
    else:
        run.mark(what.split()[0])


def check_cancelled(run: Run, state: str) -> None:
    """Check that the task is as it was marked, and that its only job is cancelled, once."""
    (job,) = run.wait_for_jobs(1)
    run.wait_for_end(job["id"], "cancelled")
    assert (run.state(), run.submissions(), run.cancels(job["id"])) == (state, 1, 1)
