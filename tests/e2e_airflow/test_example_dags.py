"""Every example DAG, run on the live processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e_airflow.conftest import AIRFLOW

if TYPE_CHECKING:
    from devtools.airflow_server import LocalAirflow
    from noukai_core.emulator import Emulator

EXAMPLES = (
    "noukai_run_job",
    "noukai_deferrable",
    "noukai_sensor",
    "noukai_mapped",
    "noukai_decorated",
    "noukai_templated",
    "noukai_skip_when_cancelled",
    "noukai_retry_policy",
    "noukai_batch",
    "noukai_batch_decorated",
    "noukai_batch_cost_cap",
    "noukai_typed_output",
)


class Example:
    """A run of an example DAG."""

    def __init__(self, airflow: LocalAirflow, dag_id: str) -> None:
        self.airflow = airflow
        self.dag_id = dag_id
        self.run_id = airflow.trigger(dag_id)

    def wait_for(self, task_id: str, map_index: int = -1) -> str | None:
        return self.airflow.wait_for(self.dag_id, self.run_id, task_id, map_index=map_index)

    def xcom(self, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        return self.airflow.xcom(self.dag_id, self.run_id, task_id, key, map_index)


@pytest.fixture(scope="module")
def examples(airflow: LocalAirflow, emulator_server: Emulator) -> dict[str, Example]:
    """All examples, started at once."""
    emulator_server.control.script("summarise", after_seconds=10, result={"summary": "short"})
    emulator_server.control.script("optional", after_seconds=10, outcome="cancelled")
    # A deferred batch polls sessions, and another test may have left jobs that end with a poll of their own.
    emulator_server.control.script("grade", after_seconds=1)
    return {dag_id: Example(airflow, dag_id) for dag_id in EXAMPLES}


def job(emulator: Emulator, job_id: str) -> dict[str, Any]:
    """Return a job of the local Noukai."""
    (found,) = (job for job in emulator.control.jobs() if job["id"] == job_id)
    return found


def test_run_job(examples: dict[str, Example], emulator_server: Emulator) -> None:
    """A job runs as a task. Its output is the return value, which the next task uses."""
    example = examples["noukai_run_job"]
    assert example.wait_for("show") == "success"
    assert example.xcom("correct")["message"] == "Helo wrld"
    assert "Helo wrld" in example.xcom("show")
    job_id = example.xcom("correct", "job_id")
    assert job(emulator_server, job_id)["state"] == "completed"
    assert emulator_server.control.counts(job_id).get("cancel", 0) == 0


def test_deferrable(examples: dict[str, Example], emulator_server: Emulator) -> None:
    """A task waits for a long job in the triggerer, and fetches its result at the end."""
    example = examples["noukai_deferrable"]
    assert example.wait_for("summarise") == "success"
    assert example.xcom("summarise") == {"summary": "short"}
    log = example.airflow.logs(example.dag_id, example.run_id, "summarise")
    assert "waiting in the triggerer" in log
    assert job(emulator_server, example.xcom("summarise", "job_id"))["parameters"] == {
        "quarter": "2026-Q3",
        "language": "en",
    }


def test_sensor(examples: dict[str, Example]) -> None:
    """A task only submits a job, and a sensor returns its output."""
    example = examples["noukai_sensor"]
    assert example.wait_for("wait") == "success"
    assert example.xcom("wait")["message"] == "Guten Morgen"
    assert example.xcom("submit") == example.xcom("submit", "job_id")


def test_mapped(examples: dict[str, Example]) -> None:
    """A mapped task runs one job for each input, and is named after the input."""
    example = examples["noukai_mapped"]
    jobs = set()
    for index, text in enumerate(["Helo", "wrld", "agian"]):
        assert example.wait_for("correct", index) == "success"
        assert example.xcom("correct", map_index=index)["message"] == text
        jobs.add(example.xcom("correct", "job_id", index))
        task = example.airflow.task(example.dag_id, example.run_id, "correct", index)
        assert task["rendered_map_index"] == text
    assert len(jobs) == 3


def test_decorated(examples: dict[str, Example], emulator_server: Emulator) -> None:
    """A decorated function returns the inputs of the job."""
    example = examples["noukai_decorated"]
    assert example.wait_for("greeting") == "success"
    submitted = job(emulator_server, example.xcom("greeting", "job_id"))
    assert (submitted["message"], submitted["parameters"]) == ("Greet Ada", {"tone": "friendly"})


def test_templated(examples: dict[str, Example], emulator_server: Emulator) -> None:
    """Templates are rendered everywhere, even in nested parameters."""
    example = examples["noukai_templated"]
    assert example.wait_for("correct") == "success"
    submitted = job(emulator_server, example.xcom("correct", "job_id"))
    assert submitted["message"] == "Helo wrld"
    assert submitted["parameters"] == {"source": {"dag": "noukai_templated", "run": example.run_id}}
    assert submitted["flow"].endswith("grade-3")


def test_skip_when_cancelled(examples: dict[str, Example]) -> None:
    """A job that is cancelled on the Noukai side can skip its task."""
    assert examples["noukai_skip_when_cancelled"].wait_for("optional") == "skipped"


def test_retry_policy(examples: dict[str, Example]) -> None:
    """A task with the retry policy runs like any other."""
    assert examples["noukai_retry_policy"].wait_for("classify") == "success"


def test_batch(examples: dict[str, Example]) -> None:
    """One task runs a job for each line of a file, and its manifest says what came of them."""
    example = examples["noukai_batch"]
    assert example.wait_for("report") == "success"
    manifest = example.xcom("grade")
    assert manifest["counts"] == {"completed": 50}
    assert manifest["output_path"] in example.xcom("report")


@pytest.mark.skipif(AIRFLOW < (3, 3), reason="a batch without a folder needs the task state store")
def test_batch_decorated(examples: dict[str, Example]) -> None:
    """A function returns the inputs of many jobs, whose outputs come back in the same order."""
    example = examples["noukai_batch_decorated"]
    assert example.wait_for("show") == "success"
    assert example.xcom("show") == "Helo wrld agian"


def test_batch_cost_cap(examples: dict[str, Example]) -> None:
    """Once the jobs that have ended cost enough, nothing more is submitted, and the manifest says so."""
    example = examples["noukai_batch_cost_cap"]
    assert example.wait_for("label") == "success"
    counts = example.xcom("label")["counts"]
    # Each job costs 0.00012 dollars, so the ninth reaches the cap, and four others run by then.
    assert 9 <= counts["completed"] <= 13
    assert counts["not_submitted"] == 50 - counts["completed"]


def test_typed_output(examples: dict[str, Example]) -> None:
    """An output comes back as its type describes it, with the defaults."""
    example = examples["noukai_typed_output"]
    assert example.wait_for("show") == "success"
    assert example.xcom("correct") == {"message": "Helo wrld", "comments": []}
    assert example.xcom("show") == "Helo wrld (0 comments)"
