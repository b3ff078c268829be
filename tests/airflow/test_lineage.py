"""What OpenLineage's provider for Airflow reports about the tasks."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_airflow.sensors.noukai import NoukaiJobSensor
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
    """Return a task's lineage as the provider extracts it in a state."""
    from airflow.providers.openlineage.extractors.manager import ExtractorManager
    from airflow.utils.state import TaskInstanceState

    run = task_instance = FakeTask()
    lineage = ExtractorManager().extract_metadata(run, task, TaskInstanceState(state), task_instance)
    return dict(lineage.run_facets)


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
