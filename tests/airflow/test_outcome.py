"""What is reported about a job that has ended."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from noukai_airflow._outcome import JobOutcome, StatusUpdates, status_summary
from noukai_airflow.exceptions import NoukaiJobCancelledException, NoukaiJobFailedException
from noukai_core import JobState, JobStatus, Noukai, RunTrace, TraceStep
from tests.airflow.conftest import KEY

URL = "https://noukai.test/job-1"
TIMES = {"created_at": "2026-01-01T00:00:00Z", "completed_at": "2026-01-01T00:00:06Z"}
STEP = TraceStep(id="check", status="failed", model="m-1", attempt=3, error="HTTP 529\noverloaded")


def outcome(trace: RunTrace | None = None, *, traced: bool = False, **fields: Any) -> JobOutcome:
    with Noukai(KEY) as client:
        job = client.flow("acme/demo/flow").attach("job-1")
    fields = {"state": JobState.FAILED, "error": "MODEL_OVERLOADED: try later"} | fields
    return JobOutcome(job, JobStatus(id="job-1", **fields), URL, trace, traced)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (outcome(**TIMES), "failed after 6 s: MODEL_OVERLOADED: try later"),
        (outcome(), "failed: MODEL_OVERLOADED: try later"),
        (outcome(error=None), "failed: the server gave no reason"),
        (
            outcome(RunTrace(steps=(STEP,)), **TIMES),
            "failed after 6 s in step check (m-1, attempt 3): MODEL_OVERLOADED: try later "
            "(HTTP 529 overloaded)",
        ),
        (
            outcome(RunTrace(steps=(STEP,)), error=None),
            "failed in step check (m-1, attempt 3): HTTP 529 overloaded",
        ),
        (outcome(RunTrace(), traced=True), "failed, before its first step: MODEL_OVERLOADED: try later"),
        (outcome(RunTrace()), "failed: MODEL_OVERLOADED: try later"),
        (
            outcome(RunTrace(steps=(TraceStep(status="failed"),))),
            "failed in step without an id: MODEL_OVERLOADED: try later",
        ),
    ],
    ids=["times", "no times", "no reason", "step", "step's reason", "no step", "not traced", "no id"],
)
def test_the_reason_comes_first(made: JobOutcome, expected: str) -> None:
    """The message of a failed job says how it failed, then where to see it, then which job it was."""
    error = made.exception()
    assert isinstance(error, NoukaiJobFailedException)
    assert str(error) == f"{expected}, see {URL} (Noukai job job-1 of acme/demo/flow)"


def test_the_failed_step_is_part_of_the_exception() -> None:
    """A callback can read which step failed."""
    error = outcome(RunTrace(steps=(STEP,))).exception()
    assert isinstance(error, NoukaiJobFailedException)
    assert error.step == STEP


def test_a_cancelled_job() -> None:
    """The message of a cancelled job says after which time it was cancelled, and by which side."""
    error = outcome(state=JobState.CANCELLED, **TIMES).exception()
    assert isinstance(error, NoukaiJobCancelledException)
    assert str(error).startswith("cancelled after 6 s on the Noukai side, see")


def test_the_summary_is_flat() -> None:
    """The XCom has one level of plain values, so that Airflow's page shows it, and no unknown ones."""
    trace = RunTrace(steps=(STEP, TraceStep(tokens=30, cost_usd=Decimal("0.002"))))
    status = JobStatus(id="job-1", state="failed", error="no", progress={"step": 4, "of": 10})
    assert status_summary(status, trace) == {
        "state": "failed",
        "progress": "40 % (4 of 10)",
        "error": "no",
        "total_tokens": 30,
        "cost_usd": "0.002",
        "failed_step": "check",
        "failed_step_model": "m-1",
        "failed_step_attempt": 3,
        "failed_step_error": "HTTP 529 overloaded",
    }


def test_what_people_see_has_no_control_characters() -> None:
    """An error of a flow is one line in the XCom and in the exception, without what a reader cannot see."""
    error = "no\x1b[31m red\x1b]8;;http://evil.test\x07\r\nforged\u2028\u202e\u200b\u3164\u2800" + "x" * 9000
    trace = RunTrace(steps=(TraceStep(status="failed", error=error),))
    summary = status_summary(JobStatus(id="job-1", state="failed", error=error), trace)
    for shown in (
        summary["error"],
        summary["failed_step_error"],
        str(outcome(trace, error=error).exception()),
    ):
        assert "no red forged xxx" in shown
        assert len(shown) < 3000


def test_updates_while_a_job_runs() -> None:
    """Each state is written once, progress every few seconds, and the end not at all."""
    updates = StatusUpdates("pending")
    running = JobStatus(id="job-1", state="running")
    statuses = [
        JobStatus(id="job-1", state="pending"),
        running,
        running,
        running.model_copy(update={"progress": {"step": 1, "of": 3}}),
        JobStatus(id="job-1", state="completed"),
    ]
    assert [updates.is_due(status) for status in statuses] == [False, True, False, False, False]
    assert StatusUpdates("running").is_due(statuses[3])
