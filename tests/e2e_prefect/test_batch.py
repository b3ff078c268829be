"""`run_noukai_jobs` on a live Prefect server. All runs start at once, each with its own Noukai flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devtools.processes import wait_until
from noukai_prefect._text import markdown
from tests.e2e_prefect.conftest import JOB_PAGE, WAIT_SECONDS

if TYPE_CHECKING:
    from devtools.prefect_server import LocalPrefect
    from tests.e2e_prefect.conftest import Run, Runs

ENDLESS = {"outcome": "never"}
LIMITS = (4.0, 16.0, 64.0)  # in turn, until the machine is quick enough to submit the jobs within the limit


@pytest.fixture(scope="module")
def started(runs: Runs) -> dict[str, Run]:
    """One flow run for each test."""
    return {
        "none": runs.start("batch_of_four", raise_on="none"),
        "any": runs.start("batch_of_four", raise_on="any"),
        "first": runs.start("batch_of_four", raise_on="first"),
        "retried": runs.start("batch_retried", script=ENDLESS),
        "max concurrency": runs.start("batch_max_concurrency", script=ENDLESS),
        "too slow": runs.start("batch_too_slow"),
        "submitted": runs.start("batch_submitted", script=ENDLESS),
    }


def states(run: Run) -> dict[str, str]:
    """Return the state of the latest job of each message."""
    return {job["message"]: job["state"] for job in run.jobs()}


def test_outcomes(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """With `raise_on="none"` each input has its outcome, in the order of the inputs."""
    run = started["none"]
    assert run.wait_for() == "Completed"
    outcomes = prefect.result(run.id)
    assert [outcome["state"] for outcome in outcomes] == ["completed", "failed", "cancelled", "completed"]
    assert [(outcome["output"] or {}).get("message") for outcome in outcomes] == ["slow", None, None, "quick"]
    assert "no luck" in outcomes[1]["error"]
    rows = run.table()
    assert [(row["#"], row["state"], row["input"]) for row in rows] == [
        (1, "failed", "fails"),
        (2, "cancelled", "is cancelled"),
        (0, "completed", "slow"),
        (3, "completed", "quick"),
    ]
    assert [row["reason"] for row in rows] == ["no luck", "was cancelled on the Noukai side", None, None]
    assert set(rows[0]) == {"#", "input", "state", "reason", "job", "seconds", "page"}
    page = JOB_PAGE.format(org="acme", project="tests", flow=run.flow, job_id=outcomes[0]["job_id"])
    assert (rows[2]["job"], rows[2]["page"]) == (markdown(outcomes[0]["job_id"]), page)
    bar = run.artifact("noukai-progress")
    assert bar["data"] == 100
    assert bar["description"].endswith(": 2 completed, 1 failed, 1 cancelled")
    line = f"INFO Noukai batch of 4 jobs of acme/tests/{run.flow}: 2 completed, 1 failed, 1 cancelled"
    wait_until(lambda: line in prefect.logs(run.id), "the counts in the log", WAIT_SECONDS)
    assert run.task_states() == ["Completed"]
    assert run.submissions() == 4


def test_raise_on_any(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """With `raise_on="any"` the task fails after every job has ended, and says how many did not complete."""
    run = started["any"]
    assert run.wait_for() == "Failed"
    assert "2 of 4 Noukai jobs" in prefect.flow_run(run.id)["state"]["message"]
    assert states(run) == {
        "slow": "completed",
        "fails": "failed",
        "is cancelled": "cancelled",
        "quick": "completed",
    }


def test_raise_on_first(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """With `raise_on="first"` the task fails with the first error, and the other jobs are left running."""
    run = started["first"]
    assert run.wait_for() == "Failed"
    message = prefect.flow_run(run.id)["state"]["message"]
    # On a busy machine, one poll may find both.
    assert "was cancelled on the Noukai side" in message or "no luck" in message
    assert sum(run.cancels(job["id"]) for job in run.jobs()) == 0


def test_retry_submits_what_is_missing(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """A retry keeps the outputs of completed jobs, and submits only for the input whose job failed."""
    run = started["retried"]
    first = run.wait_for_jobs(4, "running")
    failing = next(job["id"] for job in run.jobs() if job["message"] == "the same")
    run.control.finish(failing, "failed", error="no luck")
    for job_id in set(first) - {failing}:
        run.control.finish(job_id)
    (again,) = set(run.wait_for_jobs(5)) - set(first)
    assert run.control.job(again)["message"] == "the same"
    run.control.finish(again)
    assert run.wait_for() == "Completed"
    outputs = [outcome["output"]["message"] for outcome in prefect.result(run.id)]
    assert outputs == ["the same", "the same", "the same", "another"]
    assert run.submissions() == 5


def test_max_concurrency(started: dict[str, Run]) -> None:
    """No more jobs than `max_concurrency` exist unfinished at any time."""
    run = started["max concurrency"]
    run.wait_for_jobs(2, "running")
    for number in range(5):
        unfinished = [job["id"] for job in run.jobs() if job["state"] in ("pending", "running")]
        assert len(unfinished) <= 2
        run.control.finish(unfinished[0])
        run.wait_for_jobs(min(number + 3, 5))
    assert run.wait_for() == "Completed"
    assert run.submissions() == 5


def test_timeout_of_one_job(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """A job that does not end within `timeout` is cancelled, which affects only its own outcome."""
    run = started["too slow"]
    assert run.wait_for() == "Completed"
    quick, endless = prefect.result(run.id)
    assert quick["state"] == "completed"
    assert endless["state"] == "cancelled"
    assert "2" in endless["error"]
    assert states(run) == {"quick": "completed", "endless": "cancelled"}


def test_timeout_of_the_task(runs: Runs, prefect: LocalPrefect) -> None:
    """When Prefect's timeout of the task expires, every job is cancelled, and the table shows it."""
    for seconds in LIMITS:
        run = runs.start("batch_timed_out", script=ENDLESS, seconds=seconds)
        assert run.wait_for() == "TimedOut"
        if len(run.jobs()) == 3:
            break
    assert run.task_states() == ["TimedOut"]
    assert states(run) == {"a": "cancelled", "b": "cancelled", "c": "cancelled"}
    assert [row["state"] for row in run.table()] == ["cancelled"] * 3


def test_cancel(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """When a person cancels the flow run, every job of a submitted batch is cancelled once."""
    run = started["submitted"]
    jobs = run.wait_for_jobs(3, "running")
    run.cancel()
    run.wait_until_cancelled()
    assert [run.cancels(job) for job in jobs] == [1, 1, 1]
    assert run.task_states() == ["Cancelled"]
    assert [row["state"] for row in run.table()] == ["cancelled"] * 3
