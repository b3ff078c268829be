"""What people and automations see of a job: artifacts, events and log lines; but never the key."""

from __future__ import annotations

import os
import signal
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devtools.processes import wait_until
from noukai_prefect._text import markdown
from tests.e2e_prefect.conftest import JOB_PAGE, KEY, WAIT_SECONDS

if TYPE_CHECKING:
    from devtools.prefect_server import LocalPrefect
    from tests.e2e_prefect.conftest import Run, Runs

# Prefect 3.6 loses the flow before it can run the hooks of a run that it served: a warning in the run's log
# says "'PrefectClient' object has no attribute 'deployment_id'" (its runner/runner.py).
hooks_run = pytest.mark.skipif(version("prefect").startswith("3.6."), reason="Prefect 3.6 does not run hooks")

HALVES = [{"completed": number, "total": 4} for number in range(5)]


@pytest.fixture(scope="module")
def started(runs: Runs, prefect: LocalPrefect) -> dict[str, Run]:
    """One flow run for each test."""
    block = {"$ref": {"block_document_id": prefect.block("noukai-credentials", "default")["id"]}}
    return {
        "progress": runs.start("observed", script={"outcome": "never"}),
        "failed": runs.start(
            "observed",
            script={"outcome": "failed", "error": "no luck", "after_seconds": 4, "progress": HALVES[:3]},
        ),
        "logged": runs.start("observed", script={"after_polls": 8, "progress": HALVES}),
        "with block": runs.start("observed_with_block", credentials=block),
        "cancelled": runs.start("hooked", script={"outcome": "never"}),
        "crashed": runs.start("hooked", script={"outcome": "never"}),
        "struck in between": runs.start("struck_in_between", script={"outcome": "never"}),
        "struck in one": runs.start("struck_in_one_of_three", script={"outcome": "never"}),
        "without event": runs.start("without_event", script={"outcome": "never"}),
    }


def events_of(prefect: LocalPrefect, job_id: str) -> list[dict[str, Any]]:
    """Return the events about a job, the oldest first."""
    found = [e for e in prefect.events("noukai.job.*") if e["resource"]["prefect.resource.name"] == job_id]
    return sorted(found, key=lambda event: str(event["occurred"]))


def test_link_and_progress(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """An artifact links to the job's page, and a bar follows the job's progress to its end."""
    run = started["progress"]
    (job_id,) = run.wait_for_jobs(1)
    run.control.progress(job_id, HALVES[2])
    wait_until(
        lambda: [
            bar
            for bar in prefect.artifacts(run.id, f"noukai-progress-acme-tests-{run.flow}")
            if bar["data"] == 50
        ],
        "a bar on its way",
        WAIT_SECONDS,
    )
    run.control.finish(job_id)
    assert run.wait_for() == "Completed"
    text = run.artifact("noukai-job")["data"]
    page = JOB_PAGE.format(org="acme", project="tests", flow=run.flow, job_id=job_id)
    assert f"[{markdown(job_id)}]({page})" in text
    assert "**completed**" in text
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:]
    assert names == ["Progress", "Version", "Started", "Duration", "Tokens", "Cost"]
    bar = run.artifact("noukai-progress")
    assert (bar["type"], bar["data"]) == ("progress", 100)
    (task,) = prefect.task_runs(run.id)
    assert task["name"] == f"run-noukai-job {run.flow}"


def test_events(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """A job's submission and its end are events about the job, related to its flow run."""
    run = started["failed"]
    assert run.wait_for() == "Failed"
    (job_id,) = run.wait_for_jobs(1)
    wait_until(lambda: len(events_of(prefect, job_id)) == 2, "two events", WAIT_SECONDS)
    submitted, failed = events_of(prefect, job_id)
    assert [submitted["event"], failed["event"]] == ["noukai.job.submitted", "noukai.job.failed"]
    page = JOB_PAGE.format(org="acme", project="tests", flow=run.flow, job_id=job_id)
    assert submitted["payload"] == {"version": "production", "url": page}
    payload = failed["payload"]
    assert (payload["state"], payload["error"], payload["url"]) == ("failed", "no luck", page)
    assert payload["seconds"] >= 0
    assert payload["tokens"] >= 0
    assert failed["resource"]["noukai.flow"] == f"acme/tests/{run.flow}"
    related = {resource["prefect.resource.id"] for resource in failed["related"]}
    assert f"prefect.flow-run.{run.id}" in related


def test_log(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """The run's log has a line for the submission and for each change of state, not for each poll."""
    run = started["logged"]
    run.wait_for()
    (job_id,) = run.wait_for_jobs(1)
    assert run.control.counts(job_id)["poll"] >= 8

    def lines() -> list[str]:
        prefix = f"INFO Noukai job {job_id} of acme/tests/{run.flow}: "
        return [line.removeprefix(prefix) for line in prefect.logs(run.id) if line.startswith(prefix)]

    wait_until(lambda: lines()[-1:] and lines()[-1].startswith("used "), "the last line", WAIT_SECONDS)
    page = JOB_PAGE.format(org="acme", project="tests", flow=run.flow, job_id=job_id)
    assert lines()[:2] == ["submitted", f"page {page}"]
    assert [line for line in lines()[2:] if line.startswith("progress ")]
    rest = [line for line in lines()[2:] if not line.startswith(("progress ", "used "))]
    assert rest in (
        ["pending", "pending → running", "running → completed"],
        ["running", "running → completed"],
    )


def test_outcome_of_a_failed_job(started: dict[str, Run]) -> None:
    """The artifact of a failed job names the reason first, and its bar stops where it was and says so."""
    run = started["failed"]
    assert run.wait_for() == "Failed"
    text = run.artifact("noukai-job")["data"]
    assert "**failed**" in text
    assert text.splitlines()[4] == "| Reason | no luck |"
    bar = run.artifact("noukai-progress")
    assert bar["data"] < 100
    assert bar["description"].endswith(": failed")


@hooks_run
def test_hook_on_cancellation(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """If the process of a cancelled run can no longer cancel its jobs, the hook does.

    This includes the jobs of batches and subflows, each with the key that submitted it. A retry of the flow
    run submits new ones.
    """
    run = started["cancelled"]
    jobs = run.wait_for_jobs(4, "running")
    process = prefect.flow_run_process(run.id)
    os.kill(process, signal.SIGSTOP)
    run.cancel()
    # Prefect leaves a run whose process dies before its runner has taken up the cancel as Cancelling.
    wait_until(lambda: _has_pending_sigterm(process), "the runner to end the process", WAIT_SECONDS)
    os.kill(process, signal.SIGKILL)
    run.wait_until_cancelled()
    run.wait_for_jobs(4, "cancelled")
    assert [run.cancels(job) for job in jobs] == [1, 1, 1, 1]

    def lines() -> int:
        return sum("cancelled (the flow run was cancelled)" in line for line in prefect.logs(run.id))

    wait_until(lambda: lines() == 4, "a line for each job", WAIT_SECONDS)
    run.control.script(run.flow, after_seconds=0)
    prefect.retry(run.id)
    assert run.wait_for("Completed", "Failed", "Crashed") == "Completed"
    assert run.submissions() == 8


@hooks_run
def test_hook_on_crash(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """The jobs of a crashed run are left running, and its log names them without a warning."""
    run = started["crashed"]
    jobs = run.wait_for_jobs(4, "running")
    wait_until(lambda: all(row.get("job") for row in run.table()), "the table to name its jobs", WAIT_SECONDS)
    os.kill(prefect.flow_run_process(run.id), signal.SIGKILL)
    assert run.wait_for() == "Crashed"

    def named() -> set[str]:
        lines = [line for line in prefect.logs(run.id) if "left running (a retry" in line]
        return {job for job in jobs for line in lines if line.startswith(f"INFO Noukai job {job} of ")}

    wait_until(lambda: named() == set(jobs), "a line about each job", WAIT_SECONDS)
    assert [run.cancels(job) for job in jobs] == [0, 0, 0, 0]


def test_cancel_without_private_parts(started: dict[str, Run]) -> None:
    """Without Prefect's private stop event, a task in a thread learns from the server that it has to stop."""
    run = started["without event"]
    (job_id,) = run.wait_for_jobs(1, "running")
    run.cancel()
    run.wait_until_cancelled()
    assert run.cancels(job_id) == 1


def test_cancel_in_between(started: dict[str, Run]) -> None:
    """Prefect's signal cancels the job even if it strikes between the submission and the wait."""
    run = started["struck in between"]
    (job_id,) = run.wait_for_jobs(1, "running")
    run.cancel()
    run.wait_until_cancelled()
    assert run.cancels(job_id) == 1


def test_cancel_in_one_of_several(started: dict[str, Run]) -> None:
    """If Prefect's signal strikes in one of several gathered tasks, the others cancel their jobs as well."""
    run = started["struck in one"]
    jobs = run.wait_for_jobs(3, "running")
    run.cancel()
    run.wait_until_cancelled()
    assert [run.cancels(job) for job in jobs] == [1, 1, 1]


def test_automation(runs: Runs, prefect: LocalPrefect) -> None:
    """An automation can react to a failed job."""
    prefect.create_automation(
        {
            "name": "a job failed",
            "trigger": {
                "type": "event",
                "posture": "Reactive",
                "expect": ["noukai.job.failed"],
                "threshold": 1,
                "within": 0,
            },
            "actions": [{"type": "do-nothing"}],
        }
    )
    run = runs.start("observed", script={"outcome": "failed", "after_seconds": 0})
    assert run.wait_for() == "Failed"
    wait_until(
        lambda: prefect.events("prefect.automation.action.executed"), "the automation to act", WAIT_SECONDS
    )


def test_the_key_is_nowhere(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """Database, results and logs do not contain the key, even if the block was a parameter of the run."""
    assert started["with block"].wait_for() == "Completed"
    assert started["failed"].wait_for() == "Failed"
    files = [file for file in prefect.home.rglob("*") if file.is_file()]
    assert len(files) > 3
    assert [str(file) for file in files if KEY.encode() in file.read_bytes()] == []


def _has_pending_sigterm(pid: int) -> bool:
    """Return whether a SIGTERM is pending for a stopped process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["ShdPnd"], 16) >> (signal.SIGTERM - 1) & 1)
