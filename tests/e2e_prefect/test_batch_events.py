"""A batch meets a cost cap, a person, a kill and faults: submissions are jobs, and outcomes are inputs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e_prefect.conftest import WAIT_SECONDS

if TYPE_CHECKING:
    from devtools.prefect_server import LocalPrefect
    from tests.e2e_prefect.conftest import Run, Runs

ENDLESS = {"outcome": "never"}
SIZE = 30
HALF = SIZE // 2
COSTS = {"after_seconds": 0, "steps": [{"costUsd": "0.25"}]}
FAULTS: list[dict[str, Any]] = [
    {"kind": "drop_after", "on": "submit"},
    {"kind": "status", "on": "submit", "status": 429, "retry_after": 0},
    {"kind": "status", "on": "poll", "status": 502, "body": "html"},
    {"kind": "drop_before", "on": "poll"},
    {"kind": "status", "on": "session", "status": 503},
]


@pytest.fixture(scope="module")
def started(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The flow runs, all at once."""
    folder = str(tmp_path_factory.mktemp("outcomes"))
    started = {
        "capped": runs.start("batch_capped", script=COSTS),
        "cancelled": runs.start("batch_of_many", script=ENDLESS, size=SIZE),
        "stream cancelled": runs.start("batch_streamed", script=ENDLESS, size=SIZE),
        "outcome cancelled": runs.start("batch_worked_on", script=ENDLESS, size=SIZE),
        "killed": runs.start("batch_of_many", script=ENDLESS, size=SIZE),
        "stored and killed": runs.start("batch_stored", script=ENDLESS, size=SIZE, folder=folder),
        "stream killed": runs.start("batch_streamed", script=ENDLESS, size=SIZE),
        "faults": runs.start("batch_of_many", script={"after_seconds": 5}, size=SIZE),
    }
    for number, fault in enumerate(FAULTS):
        runs.control.fault(**fault, probability=0.2, seed=number, flow=started["faults"].flow)
    return started


def finish_half(run: Run) -> list[str]:
    """Wait for all jobs, let half of them complete, and return the others."""
    jobs = run.wait_for_jobs(SIZE, "running")
    for job in jobs[:HALF]:
        run.control.finish(job)
    return jobs[HALF:]


def finish_with_a_kill(run: Run, prefect: LocalPrefect) -> Any:
    """Kill the process of a run in the middle, run it again, and return its result."""
    left = finish_half(run)
    os.kill(prefect.flow_run_process(run.id), signal.SIGKILL)
    run.wait_for("Crashed")
    prefect.retry(run.id)
    run.wait_for("Running", "Retrying")
    for job in left:
        run.control.finish(job)
    assert run.wait_for() == "Completed"
    assert len(run.jobs()) == run.submissions() == SIZE
    return prefect.result(run.id)


def messages(outcomes: list[dict[str, Any]]) -> list[str]:
    """Return what the completed outcomes echo, in a fixed order."""
    assert all(outcome["state"] == "completed" for outcome in outcomes)
    return sorted(outcome["output"]["message"] for outcome in outcomes)


ALL = sorted(f"m{number}" for number in range(SIZE))


def test_a_cost_cap(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """Once enough was spent, the rest is not submitted, and every input has its outcome."""
    run = started["capped"]
    assert run.wait_for() == "Completed"
    outcomes = prefect.result(run.id)
    states = [outcome["state"] for outcome in outcomes]
    assert len(states) == 20
    assert 4 <= states.count("completed") <= 5  # two jobs run at the same time
    assert states.count("not_submitted") == 20 - states.count("completed")
    assert run.submissions() == len(run.jobs()) == states.count("completed")


@pytest.mark.parametrize("style", ["cancelled", "stream cancelled", "outcome cancelled"])
def test_a_person_cancels_in_the_middle(started: dict[str, Run], style: str) -> None:
    """Every job that runs is cancelled once, even while the flow works on an outcome, but none that ended."""
    run = started[style]
    left = finish_half(run)
    run.cancel()
    run.wait_until_cancelled()
    assert [run.cancels(job) for job in left] == [1] * HALF
    assert {run.control.job(job)["state"] for job in left} == {"cancelled"}
    assert run.submissions() == SIZE


@pytest.mark.parametrize("style", ["killed", "stream killed"])
def test_the_process_is_killed_in_the_middle(
    started: dict[str, Run], prefect: LocalPrefect, style: str
) -> None:
    """A rerun has an outcome for every input, and no job is submitted twice."""
    assert messages(finish_with_a_kill(started[style], prefect)) == ALL


def test_a_killed_batch_with_a_storage(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """A rerun completes the files: each input is in exactly one row."""
    manifest = finish_with_a_kill(started["stored and killed"], prefect)
    assert manifest["counts"] == {"completed": SIZE}
    files = Path(manifest["output_path"]).glob("part-*.jsonl")
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert messages(rows) == ALL


def test_faults(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """With a fault in a fifth of all requests, each input still leads to one job and one output."""
    run = started["faults"]
    assert run.wait_for(timeout=2 * WAIT_SECONDS) == "Completed"
    assert messages(prefect.result(run.id)) == ALL
    assert len(run.jobs()) == SIZE
