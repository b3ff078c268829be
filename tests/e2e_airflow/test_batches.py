"""Batches on a live Airflow: every input leads to one job and to one outcome, whatever happens meanwhile.

All runs are started at once, and all tests; each acts on its own.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from devtools.processes import wait_until

if TYPE_CHECKING:
    from devtools.airflow_server import LocalAirflow
    from tests.e2e_airflow.conftest import Run, Runs

pytestmark = pytest.mark.side_by_side

JOBS = 30
NEVER = {"outcome": "never"}
FAILED = {"outcome": "failed", "error": "MODEL_OVERLOADED"}
FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "drop_after", "on": "submit"},
    {"kind": "status", "on": "submit", "status": 429},
    {"kind": "status", "on": "poll", "status": 500},
)
TYPED = ({"result": {"points": 3}}, {"result": {"points": "many"}})
STEP = {"stepId": "draft", "costUsd": "0.02"}


class Batch:
    """One run of a batch, its inputs and its folder."""

    def __init__(self, runs: Runs, folder: Path, dag_id: str, *specs: dict[str, Any], **script: Any) -> None:
        self.folder = folder / uuid4().hex
        self.folder.mkdir()
        inputs = self.folder / "inputs.jsonl"
        rows = specs or ({},) * JOBS
        inputs.write_text("".join(f"{json.dumps(_input(place, spec))}\n" for place, spec in enumerate(rows)))
        self.run: Run = runs.prepare(dag_id, **script)
        if dag_id == "batch_patient":
            for fault in FAULTS:
                self.run.control.fault(flow=self.run.flow, probability=0.2, seed=7, **fault)
        conf = {"inputs": f"file://{inputs}", "output": f"file://{self.folder}/out"}
        self.run.start(**conf)

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the row of each input in the folder. An input with two outcomes is an error."""
        rows: dict[str, dict[str, Any]] = {}
        for file in sorted((self.folder / "out").glob("*.jsonl")):
            for line in file.read_text().splitlines():
                row = json.loads(line)
                assert row["key"] not in rows
                rows[row["key"]] = row
        return rows

    def outcomes(self) -> dict[str, str]:
        """Return the state of each input in the folder."""
        return {key: row["state"] for key, row in self.rows().items()}

    def wait_for_jobs(self, state: str | None = None, count: int = JOBS) -> None:
        """Wait until the flow has so many jobs, in a state if one is given."""

        def reached() -> bool:
            return sum(state in (None, job["state"]) for job in self.run.jobs()) >= count

        wait_until(reached, f"{count} jobs of {self.run.flow} to be {state or 'submitted'}", pause=0.5)

    def finish(self, **spec: Any) -> None:
        """End all jobs."""
        for job in self.run.jobs():
            if job["state"] in ("pending", "running"):
                self.run.control.finish(job["id"], **spec)

    def check(self, *, jobs: int = JOBS, **counts: int) -> None:
        """Check that every input has one outcome, and how many jobs were submitted."""
        states = list(self.outcomes().values())
        assert {state: states.count(state) for state in set(states)} == counts
        assert (self.run.submissions(), len(self.run.jobs())) == (jobs, jobs)


def _input(place: int, spec: dict[str, Any]) -> dict[str, Any]:
    parameters = {"parameters": {"_emulator": spec}} if spec else {}
    return {"message": str(place), "key": f"row {place}", **parameters}


@pytest.fixture(scope="module")
def batches(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Batch]:
    """Batches, one for each test."""
    folder = tmp_path_factory.mktemp("batches")

    def batch(dag_id: str, *specs: dict[str, Any], **script: Any) -> Batch:
        return Batch(runs, folder, dag_id, *specs, **script)

    return {
        "completed": batch("batch_waiting", after_seconds=2),
        "deferred": batch("batch_deferred", **NEVER),
        "waves": batch("batch_waves", after_seconds=1),
        "tolerant": batch("batch_tolerant", FAILED, {}, {}, after_seconds=1),
        "failed": batch("batch_deferred_retry", FAILED, {}, after_seconds=1),
        "typed waiting": batch("batch_typed_waiting_retry", *TYPED, after_seconds=1),
        "typed deferred": batch("batch_typed_deferred_retry", *TYPED, after_seconds=1),
        "budget": batch("batch_budget", after_seconds=0.5, steps=[STEP]),
        "mark waiting": batch("batch_waiting", **NEVER),
        "mark missed": batch("batch_waiting", **NEVER),
        "mark deferred": batch("batch_deferred", **NEVER),
        "clear": batch("batch_deferred", **NEVER),
        "crash": batch("batch_waiting_retry", **NEVER),
        "faults": batch("batch_patient", after_seconds=2),
        "orphan": batch("batch_deferred", **NEVER),
    }


@pytest.mark.parametrize("kind", ["completed", "waves"])
def test_complete(batches: dict[str, Batch], kind: str) -> None:
    """Every input leads to one job and one outcome, on the worker and in waves through the triggerer."""
    batch = batches[kind]
    assert batch.run.wait_for() == "success"
    batch.check(completed=JOBS)
    assert batch.run.xcom()["counts"] == {"completed": JOBS}
    assert batch.run.xcom("batch_status")["counts"] == {"completed": JOBS}


def test_deferred(batches: dict[str, Batch]) -> None:
    """While the jobs run, the task waits in the triggerer, for all of them with few requests."""
    batch = batches["deferred"]
    batch.wait_for_jobs()
    batch.run.wait_until_watched()
    batch.finish(result=1)
    assert batch.run.wait_for() == "success"
    batch.check(completed=JOBS)


def test_partly_failed(batches: dict[str, Batch]) -> None:
    """A task tolerates the failures that it may, and its manifest counts them."""
    batch = batches["tolerant"]
    assert batch.run.wait_for() == "success"
    batch.check(jobs=3, failed=1, completed=2)
    assert batch.run.xcom()["counts"] == {"completed": 2, "failed": 1}


def test_a_retry_submits_what_failed(batches: dict[str, Batch]) -> None:
    """A retry submits only the jobs that failed, and the last failure is that of the task."""
    batch = batches["failed"]
    assert batch.run.wait_for("failed") == "failed"
    assert batch.run.tries() == 2
    batch.check(jobs=3, failed=1, completed=1)
    assert any("1 failed of 2 jobs: MODEL_OVERLOADED" in error["exc_value"] for error in batch.run.errors())


@pytest.mark.parametrize("kind", ["typed waiting", "typed deferred"])
def test_an_output_of_another_type(batches: dict[str, Batch], kind: str) -> None:
    """A retry submits a new job for an input whose output is not of the type, whose row names the fields."""
    batch = batches[kind]
    assert batch.run.wait_for("failed") == "failed"
    assert batch.run.tries() == 2
    batch.check(jobs=3, completed=1, invalid_output=1)
    good, bad = (batch.rows()[key] for key in ("row 0", "row 1"))
    assert good["output"] == {"points": 3, "comment": "none"}
    reason = "the output is no Grade: points: Input should be a valid integer"
    assert reason in bad["error"]
    assert bad["job_id"] == batch.run.jobs()[-1]["id"]
    assert any(f"1 invalid output of 2 jobs: {reason}" in error["exc_value"] for error in batch.run.errors())


def test_the_budget(batches: dict[str, Batch]) -> None:
    """Nothing more is submitted once the jobs that have ended cost the budget."""
    batch = batches["budget"]
    assert batch.run.wait_for() == "failed"
    states = list(batch.outcomes().values())
    assert len(states) == JOBS
    # Two jobs run at the same time, and three cost more than the budget.
    assert 3 <= states.count("completed") <= 4
    assert states.count("not_submitted") == JOBS - states.count("completed")


def test_mark_failed_on_a_worker(batches: dict[str, Batch]) -> None:
    """Marking the task as failed cancels its jobs."""
    batch = batches["mark waiting"]
    batch.wait_for_jobs()
    batch.run.mark("failed")
    batch.wait_for_jobs("cancelled")
    assert batch.run.submissions() == JOBS


def test_mark_failed_on_a_worker_that_cannot_act(batches: dict[str, Batch]) -> None:
    """If the process of a marked task is killed before it can act, the API server cancels the jobs."""
    batch = batches["mark missed"]
    batch.wait_for_jobs()
    sessions = sorted({job["session_id"] for job in batch.run.jobs()})
    wait_until(
        lambda: (batch.run.xcom("batch_sessions") or {}).get("sessions") == sessions,
        "all sessions in the XCom",
    )
    batch.run.end_process(signal.SIGSTOP)
    batch.run.mark("failed")
    batch.wait_for_jobs("cancelled")
    assert batch.run.submissions() == JOBS


def test_mark_failed_while_deferred(batches: dict[str, Batch]) -> None:
    """Marking a deferred task as failed cancels its jobs."""
    batch = batches["mark deferred"]
    batch.wait_for_jobs()
    batch.run.wait_until_watched()
    batch.run.mark("failed")
    batch.wait_for_jobs("cancelled")
    assert batch.run.submissions() == JOBS


def test_clear(batches: dict[str, Batch]) -> None:
    """Clearing the task cancels its jobs and submits new ones."""
    batch = batches["clear"]
    batch.wait_for_jobs()
    batch.run.wait_until_watched()
    batch.run.clear()
    batch.wait_for_jobs("cancelled")
    batch.wait_for_jobs(count=2 * JOBS)
    batch.finish(result=1)
    assert batch.run.wait_for("success") == "success"
    batch.check(jobs=2 * JOBS, completed=JOBS)


def test_a_crash(batches: dict[str, Batch]) -> None:
    """After a SIGKILL of the worker's process, the retry attaches to all jobs."""
    batch = batches["crash"]
    batch.wait_for_jobs()
    batch.run.end_process(signal.SIGKILL)
    wait_until(lambda: batch.run.tries() == 2, "the retry")
    batch.finish(result=1)
    assert batch.run.wait_for("success") == "success"
    batch.check(completed=JOBS)


def test_faults(batches: dict[str, Batch]) -> None:
    """Though many requests fail, and responses to submissions are lost, every input leads to one job."""
    batch = batches["faults"]
    assert batch.run.wait_for() == "success"
    states = list(batch.outcomes().values())
    assert (states, len(batch.run.jobs())) == (["completed"] * JOBS, JOBS)


def test_a_triggerer_that_is_killed(batches: dict[str, Batch], airflow: LocalAirflow) -> None:
    """After a SIGKILL of the triggerer, the next one waits for the same jobs."""
    batch = batches["orphan"]
    batch.wait_for_jobs()
    batch.run.wait_until_watched()
    airflow.triggerer.kill()
    batch.finish(result=1)
    airflow.triggerer.start()
    assert batch.run.wait_for() == "success"
    batch.check(completed=JOBS)
