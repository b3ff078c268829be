"""Every example flow, run as a served deployment on a live Prefect server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from devtools.processes import wait_until
from noukai_core import Noukai
from tests.e2e_prefect.conftest import WAIT_SECONDS

if TYPE_CHECKING:
    from devtools.prefect_server import LocalPrefect
    from noukai_core.emulator import Emulator, EmulatorControl

EXAMPLES = Path(__file__).parents[2] / "example_flows"


class Example:
    """A run of an example flow, and its jobs on the local Noukai."""

    def __init__(self, prefect: LocalPrefect, control: EmulatorControl, deployment: str) -> None:
        self.prefect = prefect
        self.control = control
        self.id = prefect.run(deployment)

    def end(self) -> str:
        return self.prefect.wait_for(self.id, timeout=WAIT_SECONDS)

    def result(self) -> Any:
        return self.prefect.result(self.id)

    def task_states(self) -> list[tuple[str, str]]:
        return [(task["name"], task["state_name"]) for task in self.prefect.ended_task_runs(self.id)]

    def jobs(self) -> list[dict[str, Any]]:
        """Return the jobs that the run recorded, as the local Noukai knows them."""
        records = [
            one for one in self.prefect.artifacts(self.id) if str(one["key"]).startswith("noukai-job-")
        ]
        return [self.control.job(record["metadata_"]["job_id"]) for record in records]

    def polls(self) -> int:
        return sum(self.control.counts(job["id"])["poll"] for job in self.jobs())


@pytest.fixture(scope="module")
def examples(prefect: LocalPrefect, emulator_server: Emulator) -> dict[str, Example]:
    """All examples, started at once."""
    control = emulator_server.control
    control.script("fails", outcome="failed", error="no luck")
    control.script("is-cancelled", outcome="cancelled")
    control.script("summarise", after_polls=3)
    control.script("translate", outcome="never")
    names = [file.stem for file in EXAMPLES.glob("noukai_*.py") if "\n@flow" in file.read_text()]
    return {name: Example(prefect, control, f"{name.replace('_', '-')}/local") for name in names}


def test_run_job(examples: dict[str, Example]) -> None:
    """A job runs as a task, and the next task can use its output."""
    example = examples["noukai_run_job"]
    assert example.end() == "Completed"
    assert example.result() == "The flow says: Helo wrld"
    assert [job["state"] for job in example.jobs()] == ["completed"]


def test_three_endings(examples: dict[str, Example]) -> None:
    """Each of three jobs determines the state of its task run, and a failed one fails the flow run."""
    example = examples["noukai_three_endings"]
    assert example.end() == "Failed"
    assert sorted(example.task_states()) == [
        ("completes", "Completed"),
        ("fails", "Failed"),
        ("is-cancelled", "Failed"),
    ]
    assert sorted(job["state"] for job in example.jobs()) == ["cancelled", "completed", "failed"]
    messages = {task["name"]: task["state"]["message"] for task in example.prefect.task_runs(example.id)}
    assert "no luck" in messages["fails"]
    assert "was cancelled on the Noukai side" in messages["is-cancelled"]


def test_gather(examples: dict[str, Example]) -> None:
    """Gathered jobs in an async flow run once each, and return their outputs in order."""
    example = examples["noukai_gather"]
    assert example.end() == "Completed"
    assert example.result() == ["one", "two", "three"]
    assert [state for _, state in example.task_states()] == ["Completed"] * 3
    assert len(example.jobs()) == 3


def test_mapped(examples: dict[str, Example]) -> None:
    """Each mapped input is a task run, and the outputs are in order."""
    example = examples["noukai_mapped"]
    assert example.end() == "Completed"
    assert example.result() == ["one", "two", "three"]
    assert [state for _, state in example.task_states()] == ["Completed"] * 3
    assert len(example.jobs()) == 3


def test_submit_and_wait(examples: dict[str, Example]) -> None:
    """One task can submit a job and another wait for it, without a task run for each poll."""
    example = examples["noukai_submit_and_wait"]
    assert example.end() == "Completed"
    assert example.result() == {"title": "Quarterly report", "summary": {"message": "A long report"}}
    assert len(example.task_states()) == 3
    assert example.polls() == 3


def test_job_block(examples: dict[str, Example]) -> None:
    """A saved job block is loaded with its nested credentials and triggered, and returns the output."""
    example = examples["noukai_job_block"]
    assert example.end() == "Completed"
    assert example.result() == {"message": "Helo wrld"}
    assert [job["state"] for job in example.jobs()] == ["completed"]


def test_cancelled(examples: dict[str, Example]) -> None:
    """With `on_cancelled="cancel"`, a job that Noukai cancels ends its task run and flow run as Cancelled."""
    example = examples["noukai_cancelled"]
    assert example.end() == "Cancelled"
    assert [state for _, state in example.task_states()] == ["Cancelled"]
    assert [job["state"] for job in example.jobs()] == ["cancelled"]


def test_many(examples: dict[str, Example]) -> None:
    """The outputs of fifty jobs in one task run are in the inputs' order, and a table shows each job."""
    example = examples["noukai_many"]
    assert example.end() == "Completed"
    result = example.result()
    assert result["outputs"] == [{"message": f"text {number}"} for number in range(50)]
    assert result["failed"] == []
    assert len(example.task_states()) == 1
    (table,) = [artifact for artifact in example.prefect.artifacts(example.id) if artifact["type"] == "table"]
    rows = json.loads(table["data"])
    assert [row["state"] for row in rows] == ["completed"] * 50
    assert all(row["tokens"] > 0 for row in rows)


def test_jsonl(examples: dict[str, Example]) -> None:
    """The lines of a file lead to rows in files, and the result is a manifest."""
    example = examples["noukai_jsonl"]
    assert example.end() == "Completed"
    manifest = example.result()
    assert manifest["counts"] == {"completed": 20}
    parts = Path(manifest["output_path"]).glob("part-*.jsonl")  # a slow run writes what it has in between
    rows = [json.loads(row) for part in parts for row in part.read_text().splitlines()]
    assert sorted(row["key"] for row in rows) == sorted(f"essay-{number}" for number in range(20))


def test_cost_cap(examples: dict[str, Example]) -> None:
    """Some jobs complete, and the others are not submitted."""
    example = examples["noukai_cost_cap"]
    assert example.end() == "Completed"
    counts = example.result()
    assert set(counts) == {"completed", "not_submitted"}
    assert sum(counts.values()) == 20


def test_typed(examples: dict[str, Example]) -> None:
    """The outputs are instances of the model."""
    example = examples["noukai_typed"]
    assert example.end() == "Completed"
    assert example.result() == ["Helo", "wrold"]


def test_stream(examples: dict[str, Example]) -> None:
    """The flow gets each outcome."""
    example = examples["noukai_stream"]
    assert example.end() == "Completed"
    assert example.result() == {"words": 20, "failed": 0}


def test_hooks(examples: dict[str, Example]) -> None:
    """A flow with the hooks for cancellation and crash completes like any other flow."""
    example = examples["noukai_hooks"]
    assert example.end() == "Completed"
    assert example.result() == {"message": "Helo wrld"}


def test_suspend(examples: dict[str, Example]) -> None:
    """A suspended run has no process. It is resumed when its job has ended, and attaches to it."""
    example = examples["noukai_suspend"]
    assert example.prefect.wait_for(example.id, "Suspended", timeout=WAIT_SECONDS) == "Suspended"
    (job,) = example.jobs()
    assert example.control.counts(job["id"])["poll"] == 0
    wait_until(
        lambda: example.prefect.flow_run_processes(example.id) == [], "the process to end", WAIT_SECONDS
    )

    def resumed() -> int:
        resuming = example.prefect.run("resume-noukai-runs/form")
        assert example.prefect.wait_for(resuming, timeout=WAIT_SECONDS) == "Completed"
        count: int = example.prefect.result(resuming)
        return count

    assert resumed() == 0
    assert example.prefect.state(example.id) == "Suspended"
    example.control.finish(job["id"])
    assert resumed() == 1

    assert example.end() == "Completed"
    assert example.result() == {"message": "A long book"}
    assert [job["id"] for job in example.jobs()] == [job["id"]]
    assert [other["id"] for other in example.control.jobs() if other["slug"] == "translate"] == [job["id"]]


def test_deployments(prefect: LocalPrefect, emulator_server: Emulator) -> None:
    """The flows of the package can be deployed as they are: a typed form, and the default credentials."""
    deployment = prefect.deployment("noukai-job/form")
    schema = deployment["parameter_openapi_schema"]
    assert schema["definitions"]["NoukaiCredentials"]["block_type_slug"] == "noukai-credentials"
    assert schema["required"] == ["noukai_flow"]

    block = {"$ref": {"block_document_id": prefect.block("noukai-credentials", "default")["id"]}}
    one = prefect.run(
        "noukai-job/form", {"credentials": block, "noukai_flow": "acme/spelling/grade-3", "message": "Helo"}
    )
    many = prefect.run("noukai-jobs/form", {"noukai_flow": "acme/spelling/grade-3", "messages": ["a", "b"]})
    assert prefect.wait_for(one, timeout=WAIT_SECONDS) == "Completed"
    assert prefect.result(one) == {"message": "Helo"}
    assert prefect.wait_for(many, timeout=WAIT_SECONDS) == "Completed"
    assert prefect.result(many) == [{"message": "a"}, {"message": "b"}]


def test_events(prefect: LocalPrefect, emulator_server: Emulator) -> None:
    """Each run of a Noukai flow that ends is one event, also when it ends between two reads."""
    slug = f"watched-{uuid4().hex[:8]}"
    with Noukai("nk_test_any", base_url=emulator_server.base_url) as client:
        flow = client.flow(f"acme/tests/{slug}")
        before = flow.job("before")
        before.wait()
        assert before.accepted is not None
        flow_id = before.accepted.flow_id

        def emitted() -> int:
            watching = prefect.run("watch-noukai-runs/form", {"flow_id": flow_id})
            assert prefect.wait_for(watching, timeout=WAIT_SECONDS) == "Completed"
            count: int = prefect.result(watching)
            return count

        assert emitted() == 0
        job = flow.job("after")
        job.wait()
    assert emitted() == 1
    assert emitted() == 0

    def found() -> list[dict[str, Any]]:
        return [one for one in prefect.events("noukai.run.*") if one["resource"]["noukai.flow-id"] == flow_id]

    (event,) = wait_until(found, "the event", WAIT_SECONDS)
    assert (event["event"], event["payload"]["run_id"]) == ("noukai.run.completed", job.id)


def test_a_flow_that_events_start(examples: dict[str, Example]) -> None:
    """The example of a flow that events start is an ordinary flow."""
    example = examples["noukai_events"]
    assert example.end() == "Completed"
    assert example.result() == "The run job_1 is completed"
