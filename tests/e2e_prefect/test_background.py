"""Background tasks: one process delays them, and another one, `prefect task serve`, runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from devtools.processes import wait_until
from tests.e2e_prefect.conftest import WAIT_SECONDS, Run

if TYPE_CHECKING:
    from devtools.prefect_server import LocalPrefect
    from tests.e2e_prefect.conftest import Runs

SCRIPT = Path(__file__).parent / "flows" / "background.py"


@pytest.fixture(params=["pickle", "json"])
def serializer(request: pytest.FixtureRequest) -> dict[str, str]:
    """How Prefect writes the parameters of the tasks: as it does by default, and the other way."""
    if request.param == "json" and version("prefect").startswith("3.6."):
        pytest.skip("Prefect 3.6 cannot write the context of a background task as JSON")
    return {"PREFECT_RESULTS_DEFAULT_SERIALIZER": request.param}


def delay(runs: Runs, count: int, environment: dict[str, str]) -> tuple[Run, list[str]]:
    """Delay equal tasks in a process that then ends; return their jobs, and their task runs."""
    slug = f"background-{uuid4().hex[:8]}"
    runs.control.script(slug, outcome="never")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), f"acme/tests/{slug}", str(count)],
        env=runs.prefect.environment | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=WAIT_SECONDS,
    )
    return Run(runs.prefect, runs.control, "", slug, {}), done.stdout.split()


@pytest.fixture
def serve(prefect: LocalPrefect) -> Iterator[Any]:
    """Starts servers of background tasks, and ends those that the test has left."""
    started = []

    def start(environment: dict[str, str]) -> Any:
        started.append(prefect.serve_tasks(f"{SCRIPT}:grade", environment=environment))
        return started[-1]

    yield start
    for server in started:
        prefect.kill(server)


def test_the_server_of_the_tasks_is_killed(
    runs: Runs, prefect: LocalPrefect, serve: Any, serializer: dict[str, str]
) -> None:
    """Equal background tasks are separate jobs, and attach to them when scheduled again after a crash."""
    server = serve(serializer)
    run, task_runs = delay(runs, 2, serializer)
    jobs = run.wait_for_jobs(2, "running")
    prefect.kill(server)

    serve(serializer)
    for task_run in task_runs:
        prefect.schedule_task_run(task_run)
    run.attached_again(jobs)
    for job in jobs:
        run.control.finish(job)

    def completed() -> bool:
        return all(prefect.task_run(task_run)["state_name"] == "Completed" for task_run in task_runs)

    wait_until(completed, "both background tasks to complete", WAIT_SECONDS)
    assert run.submissions() == 2
    assert [run.cancels(job) for job in jobs] == [0, 0]
