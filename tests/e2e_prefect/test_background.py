"""Background tasks: one process delays them, and another one, `prefect task serve`, runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
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
TASKS = ("grade", "agrade")
PICKLE = {"PREFECT_RESULTS_DEFAULT_SERIALIZER": "pickle"}
"""The variable with which Prefect writes the parameters of the tasks as it does by default."""


@pytest.fixture(params=["pickle", "json"])
def serializer(request: pytest.FixtureRequest) -> dict[str, str]:
    """How Prefect writes the parameters of the tasks: as it does by default, and the other way."""
    if request.param == "json" and version("prefect").startswith("3.6."):
        pytest.skip("Prefect 3.6 cannot write the context of a background task as JSON")
    return {"PREFECT_RESULTS_DEFAULT_SERIALIZER": request.param}


def delay(
    runs: Runs, task: str, count: int, environment: Mapping[str, str] = PICKLE
) -> tuple[Run, list[str]]:
    """Delay equal tasks in a process that then ends; return their jobs, and their task runs."""
    slug = f"background-{uuid4().hex[:8]}"
    runs.control.script(slug, outcome="never")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), task, f"acme/tests/{slug}", str(count)],
        env={**runs.prefect.environment, **environment},
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

    def start(environment: Mapping[str, str] = PICKLE) -> Any:
        entrypoints = [f"{SCRIPT}:{task}" for task in TASKS]
        started.append(prefect.serve_tasks(*entrypoints, environment=environment))
        return started[-1]

    yield start
    for server in started:
        prefect.kill(server)


def wait_until_completed(prefect: LocalPrefect, *task_runs: str) -> None:
    """Wait until task runs have completed."""

    def completed() -> bool:
        return all(prefect.task_run(task_run)["state_name"] == "Completed" for task_run in task_runs)

    wait_until(completed, "the background tasks to complete", WAIT_SECONDS, pause=0.5)


def test_the_server_of_the_tasks_is_killed(
    runs: Runs, prefect: LocalPrefect, serve: Any, serializer: dict[str, str]
) -> None:
    """Equal background tasks are separate jobs, and attach to them when scheduled again after a crash."""
    server = serve(serializer)
    run, task_runs = delay(runs, "grade", 2, serializer)
    jobs = run.wait_for_jobs(2, "running")
    prefect.kill(server)

    serve(serializer)
    for task_run in task_runs:
        prefect.schedule_task_run(task_run)
    run.attached_again(jobs)
    for job in jobs:
        run.control.finish(job)
    wait_until_completed(prefect, *task_runs)
    assert run.submissions() == 2
    assert [run.cancels(job) for job in jobs] == [0, 0]


def test_the_server_of_an_async_task_is_shut_down(runs: Runs, prefect: LocalPrefect, serve: Any) -> None:
    """A SIGTERM ends an async background task at once and leaves its job running; the rerun attaches."""
    server = serve()
    run, (task_run,) = delay(runs, "agrade", 1)
    (job,) = run.wait_for_jobs(1, "running")
    os.kill(server.pid, signal.SIGTERM)
    wait_until(lambda: not server.running, "the end of the server", WAIT_SECONDS)

    serve()
    prefect.schedule_task_run(task_run)
    run.attached_again([job])
    run.control.finish(job)
    wait_until_completed(prefect, task_run)
    assert (run.submissions(), run.cancels(job)) == (1, 0)


def test_the_server_of_a_blocking_task_is_shut_down(runs: Runs, prefect: LocalPrefect, serve: Any) -> None:
    """After a SIGTERM, the server of a blocking background task waits until its job has ended."""
    server = serve()
    run, (task_run,) = delay(runs, "grade", 1)
    (job,) = run.wait_for_jobs(1, "running")
    os.kill(server.pid, signal.SIGTERM)
    wait_until(lambda: "SIGTERM received" in server.log.read_text(), "the signal", WAIT_SECONDS)
    run.attached_again([job])
    assert server.running
    run.control.finish(job)
    wait_until(lambda: not server.running, "the end of the server", WAIT_SECONDS)
    wait_until_completed(prefect, task_run)
    assert (run.submissions(), run.cancels(job)) == (1, 0)


@pytest.mark.parametrize("task", TASKS)
def test_a_person_cancels_the_flow_run(runs: Runs, prefect: LocalPrefect, serve: Any, task: str) -> None:
    """The flow run that has delayed a task is cancelled: so is the job of the task, once."""
    serve()
    run = runs.start("delay_and_wait", script={"outcome": "never"}, task=task)
    (job,) = run.wait_for_jobs(1, "running")
    run.cancel()
    run.wait_until_cancelled()
    run.control.wait_for("cancel", 1, job_id=job, timeout=WAIT_SECONDS)
    assert run.task_states() == ["Cancelled"]
    assert (run.submissions(), run.cancels(job)) == (1, 1)
