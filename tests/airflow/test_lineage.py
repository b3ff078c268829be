"""What OpenLineage's provider for Airflow reports about the tasks."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import Asset, AssetAlias, ObjectStoragePath
from airflow.sdk.execution_time.context import OutletEventAccessors

from noukai_airflow.exceptions import (
    NoukaiBatchFailedException,
    NoukaiJobFailedException,
    NoukaiSensorJobFailedException,
)
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.operators.batch import NoukaiRunJobsOperator
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_airflow.sensors.noukai import NoukaiJobSensor
from noukai_core import RunUrlTemplate
from tests.airflow.conftest import FakeTask, MemoryStore

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core.emulator import Emulator

FLOW = "acme/demo/flow"

WITHOUT_THE_EXTRA = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("openlineage", "airflow.providers.openlineage.extractors")):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import noukai_airflow.decorators.noukai, noukai_airflow._wait, noukai_airflow.operators.noukai
import noukai_airflow.sensors.noukai, noukai_airflow.triggers.noukai, noukai_airflow._worker_kill
print("noukai_airflow._lineage" in sys.modules)
"""


def facets(task: Any, state: str) -> dict[str, Any]:
    """Return the facets of a task's lineage as the provider extracts it in a state."""
    return dict(lineage(task, state).run_facets)


def lineage(task: Any, state: str) -> Any:
    """Return a task's lineage as the provider extracts it in a state."""
    from airflow.providers.openlineage.extractors.manager import ExtractorManager
    from airflow.utils.state import TaskInstanceState

    run = task_instance = FakeTask()
    return ExtractorManager().extract_metadata(run, task, TaskInstanceState(state), task_instance)


@pytest.mark.parametrize("state", ["success", "failed"])
def test_the_job_of_an_operator(
    state: str,
    settings: ConnectionSettings,
    store: MemoryStore,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The start reports the flow, and every end the job as well, as a query to an external system."""
    monkeypatch.setattr(NoukaiHook, "settings", settings)
    emulator.control.script("flow", after_seconds=0)
    task = NoukaiRunJobOperator(task_id="task", flow=FLOW, message="Hello", poll_interval=0.05)
    started = facets(task, "running")
    assert set(started) == {"noukai_job"}
    assert (started["noukai_job"].flow, started["noukai_job"].jobId) == (FLOW, None)
    context: Any = {"ti": FakeTask(), "task_state_store": store}
    task.execute(context)
    ended = facets(task, state)
    job_id = context["ti"].xcoms["job_id"]
    assert (ended["noukai_job"].flow, ended["noukai_job"].jobId) == (FLOW, job_id)
    assert (ended["externalQuery"].externalQueryId, ended["externalQuery"].source) == (job_id, "noukai")


def test_the_outcome(
    settings: ConnectionSettings,
    store: MemoryStore,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The facet of a failed task says why and in which step the job failed, its cost, and its page."""
    template = RunUrlTemplate("https://noukai.test/{flow}/{job_id}")
    monkeypatch.setattr(NoukaiHook, "settings", replace(settings, run_url_template=template))
    emulator.control.script(
        "flow",
        outcome="failed",
        error="OVERLOADED",
        after_seconds=0,
        steps=[{"stepId": "draft", "modelUsed": "m"}],
    )
    context: Any = {"ti": FakeTask(), "task_state_store": store}
    operator = NoukaiRunJobOperator(task_id="task", flow=FLOW, message="Hello", poll_interval=0.05)
    sensor = NoukaiJobSensor(task_id="task", flow=FLOW, job_id="", poke_interval=0.05)
    with pytest.raises(NoukaiJobFailedException):
        operator.execute(context)
    sensor.job_id = context["ti"].xcoms["job_id"]
    with pytest.raises(NoukaiSensorJobFailedException):
        sensor.execute({"ti": FakeTask()})  # type: ignore[typeddict-item]
    for task in (operator, sensor):
        facet = facets(task, "failed")["noukai_job"]
        assert (facet.state, facet.reason) == ("failed", "OVERLOADED")
        assert (facet.failedStep, facet.failedStepModel) == ("draft", "m")
        assert (facet.totalTokens, facet.costUsd) == (12, "0.00012")
        assert facet.url == f"https://noukai.test/flow/{sensor.job_id}"


@pytest.mark.parametrize("outcome", ["completed", "failed"])
def test_a_batch(
    outcome: str,
    settings: ConnectionSettings,
    store: MemoryStore,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The facet of a batch says what came of its jobs, even if the task has failed; files are datasets."""
    monkeypatch.setattr(NoukaiHook, "settings", settings)
    emulator.control.script("flow", outcome=outcome, after_seconds=0)
    (tmp_path / "in.jsonl").write_text('"one"\n"two"\n')
    task = NoukaiRunJobsOperator(
        task_id="task",
        flow=FLOW,
        inputs=f"file://{tmp_path}/in.jsonl",
        output_path=f"file://{tmp_path}/out",
        trace=True,
        poll_interval=0.05,
    )
    started = lineage(task, "running")
    assert (started.run_facets["noukai_batch"].flow, set(started.run_facets)) == (FLOW, {"noukai_batch"})
    with nullcontext() if outcome == "completed" else pytest.raises(NoukaiBatchFailedException):
        task.execute({"ti": FakeTask(), "task_state_store": store})  # type: ignore[typeddict-item]
    ended = lineage(task, "success" if outcome == "completed" else "failed")
    facet = ended.run_facets["noukai_batch"]
    assert (facet.jobs, facet.counts, facet.totalTokens, facet.costUsd) == (2, {outcome: 2}, 24, "0.00024")
    assert facet.jobsWithoutCost == 0
    assert ended.run_facets["externalQuery"].externalQueryId == facet.batchId
    assert [(one.namespace, one.name) for one in (*ended.inputs, *ended.outputs)] == [
        ("file", f"{tmp_path}/in.jsonl"),
        ("file", f"{tmp_path}/out"),
    ]


def test_the_events_of_assets(
    settings: ConnectionSettings, store: MemoryStore, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event of an asset that a task updates names the job that updated it, and what it cost."""
    monkeypatch.setattr(NoukaiHook, "settings", settings)
    emulator.control.script("flow", after_seconds=0)
    asset = Asset("graded")
    outlets = [AssetAlias("decided-later"), asset]
    task = NoukaiRunJobOperator(task_id="task", flow=FLOW, message="Hello", trace=True, outlets=outlets)
    events = OutletEventAccessors()
    context: Any = {"ti": FakeTask(), "task_state_store": store, "task": task, "outlet_events": events}
    task.execute(context)
    assert events[asset].extra == {
        "noukai_flow": FLOW,
        "noukai_job_id": context["ti"].xcoms["job_id"],
        "noukai_total_tokens": 12,
        "noukai_cost_usd": "0.00012",
    }


@pytest.mark.parametrize("state", ["running", "success"])
def test_the_job_of_a_sensor(state: str) -> None:
    """A sensor knows its job from the start."""
    reported = facets(NoukaiJobSensor(task_id="task", flow=FLOW, job_id="job-1"), state)
    assert reported["externalQuery"].externalQueryId == "job-1"
    assert (reported["noukai_job"].flow, reported["noukai_job"].jobId) == (FLOW, "job-1")


def test_without_the_extra() -> None:
    """OpenLineage is neither needed nor loaded without its extra."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_EXTRA], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip().splitlines()[-1:]) == (0, ["False"]), done.stderr


@pytest.mark.parametrize(
    ("inputs", "dataset"),
    [
        ("s3://bucket/folder/in.jsonl", ("s3://bucket", "folder/in.jsonl")),
        ("s3://aws_default@bucket/in.jsonl", ("s3://bucket", "in.jsonl")),
        ("s3://key:secret@bucket/in.jsonl", ("s3://bucket", "in.jsonl")),
        ("https://host/in.jsonl?sig=secret#top", ("https://host", "in.jsonl")),
        ("https://host?sig=sec/ret", ("https://host", "")),
        (
            "abfs://essays@school.dfs.core.windows.net/in.jsonl?sig=secret",
            ("abfs://essays@school.dfs.core.windows.net", "in.jsonl"),
        ),
        ("abfs://wasb_default@essays/in.jsonl", ("abfs://essays", "in.jsonl")),
        ("file://of_the_path@/data/in.jsonl", ("file", "/data/in.jsonl")),
        ("file:///data/what?#1.jsonl", ("file", "/data/what?#1.jsonl")),
        (ObjectStoragePath("s3://bucket/in.jsonl", conn_id="aws_default"), ("s3://bucket", "in.jsonl")),
        ("/data/in.jsonl", None),
        (["one"], None),
        (["s3://bucket/one"], None),
    ],
)
def test_the_datasets_of_a_batch(inputs: Any, dataset: tuple[str, str] | None) -> None:
    """Files are named as by OpenLineage, without connection and signature; other inputs are no dataset."""
    task = NoukaiRunJobsOperator(task_id="task", flow=FLOW, inputs=inputs)
    found = [(one.namespace, one.name) for one in lineage(task, "running").inputs]
    assert found == ([] if dataset is None else [dataset])


def test_a_task_that_failed_before_its_job() -> None:
    """A task that ended before it had a job reports its flow."""
    task = NoukaiRunJobOperator(task_id="task", flow=FLOW, message="Hello")
    ended = facets(task, "failed")
    assert (ended["noukai_job"].flow, ended["noukai_job"].jobId) == (FLOW, None)
