"""Workers that crash, and responses that are lost: no second job is submitted, and none is cancelled.

All runs are started at once, and all tests; each acts on its own.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from devtools.processes import LONGEST_WAIT, wait_until

if TYPE_CHECKING:
    from tests.e2e_airflow.conftest import Run, Runs

pytestmark = pytest.mark.side_by_side

LONG = {"outcome": "never"}


@pytest.fixture(scope="module")
def started(runs: Runs) -> dict[str, Run]:
    """A run for each test."""
    submitting = runs.prepare("deferred_retry", **LONG)
    submitting.control.fault("slow", on="submit", times=1, flow=submitting.flow, seconds=LONGEST_WAIT)
    with_job, without_job = (runs.prepare("deferred", **LONG) for _ in range(2))
    with_job.control.fault("drop_after", on="submit", times=1, flow=with_job.flow)
    without_job.control.fault("drop_before", on="submit", times=1, flow=without_job.flow)
    return {
        # Its test starts it, since the signal must come before the response.
        "submitting": submitting,
        "submitted": runs.start("deferred_inline_retry", **LONG),
        "not durable": runs.start("waiting_not_durable", **LONG),
        "lost with a job": with_job.start(),
        "lost without a job": without_job.start(),
    }


def test_killed_after_the_submission(started: dict[str, Run]) -> None:
    """After a crash between the submission and the deferral, the retry attaches to the job."""
    run = started["submitted"]
    job_id = run.wait_until_waiting()
    run.end_process(signal.SIGKILL)
    run.wait_until_attached()
    run.finish_well(job_id)
    assert run.tries() == 2


def test_killed_with_a_task_that_is_not_durable(started: dict[str, Run]) -> None:
    """With `durable=False`, the retry after a crash submits a new job, and the first one is left running."""
    run = started["not durable"]
    first = run.wait_until_waiting()
    run.end_process(signal.SIGKILL)
    _, second = run.wait_for_jobs(2)
    run.control.finish(second["id"], result={"second": True})
    assert run.wait_for("success") == "success"
    assert run.xcom() == {"second": True}
    assert (run.submissions(), run.cancels(first), run.cancels(second["id"])) == (2, 0, 0)


def test_killed_before_the_response(started: dict[str, Run]) -> None:
    """After a crash before the response, the retry finds the job."""
    run = started["submitting"].start()
    run.wait_for("running")
    wait_until(run.submissions, "the request to submit")
    run.end_process(signal.SIGKILL)
    run.wait_for("deferred")
    assert run.said("found by its submission")
    run.finish_well(run.job()["id"])


def test_response_lost_with_a_job(started: dict[str, Run]) -> None:
    """If the response to a submission is lost, the job is found, and nothing is sent again."""
    run = started["lost with a job"]
    run.wait_for("deferred")
    run.finish_well(run.job()["id"])


def test_response_lost_without_a_job(started: dict[str, Run]) -> None:
    """If a submission is lost before it creates a job, it is sent again, and creates one job."""
    run = started["lost without a job"]
    run.wait_for("deferred")
    job = run.job()
    run.control.finish(job["id"])
    assert run.wait_for("success") == "success"
    assert (run.submissions(), len(run.jobs()), run.cancels(job["id"])) == (2, 1, 0)
