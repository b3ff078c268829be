"""Workers that are shut down with a task on them: its job is kept, and the next try waits for it again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil
import pytest

from devtools.processes import wait_until
from tests.e2e_airflow.conftest import Run

if TYPE_CHECKING:
    from tests.deployment.deployment import Deployment
    from tests.faults.noukai import NoukaiProcess

WAYS = ["waiting", "before_deferral"]


@pytest.fixture
def workers(deployment: Deployment) -> Iterator[Deployment]:
    """The running Airflow, whose workers a test may disturb; afterwards both work again."""
    yield deployment
    for worker in deployment.workers:
        if not worker.running:
            worker.start()


def start(dag_id: str, deployment: Deployment, noukai: NoukaiProcess) -> tuple[Run, str, int]:
    """Run a task whose job does not end by itself; return the run, its job, and the task's process."""
    flow = f"shutdown-{uuid4().hex[:8]}"
    noukai.control.script(flow, outcome="never")
    run = Run(deployment, noukai.control, dag_id, flow).start()
    (job,) = run.wait_for_jobs(1)
    wait_until(lambda: run.xcom("job_id") == job["id"], "the job's id")
    return run, job["id"], deployment.task_process(dag_id, run.run_id, "job")


def wait_for_polls(run: Run, job_id: str, more: int = 3) -> None:
    """Wait until the job is polled again."""
    seen = run.control.counts(job_id)["poll"]
    wait_until(lambda: run.control.counts(job_id)["poll"] >= seen + more, "a poll of the job")


def check_second_try(run: Run, job_id: str) -> None:
    """Check that the next try returns the job's result, after one submission and no cancel."""
    run.wait_until_attached()
    run.control.finish(job_id, result={"kept": True})
    assert run.wait_for("success") == "success"
    assert run.xcom() == {"kept": True}
    assert (run.tries(), run.submissions(), run.cancels(job_id)) == (2, 1, 0)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", WAYS)
def test_grace_that_is_long_enough(way: str, workers: Deployment, noukai: NoukaiProcess) -> None:
    """A worker that is asked to stop lets its task finish if there is time."""
    run, job_id, process = start(way, workers, noukai)
    worker = workers.worker_of(process)
    os.kill(worker.pid, signal.SIGTERM)
    wait_for_polls(run, job_id)
    run.control.finish(job_id, result={"kept": True})
    assert run.wait_for("success") == "success"
    assert run.xcom() == {"kept": True}
    assert (run.tries(), run.submissions(), run.cancels(job_id)) == (1, 1, 0)
    wait_until(lambda: not worker.running, "the worker's end")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", WAYS)
def test_grace_that_is_too_short(way: str, workers: Deployment, noukai: NoukaiProcess) -> None:
    """A worker that is killed because its task did not end in time costs no second job."""
    run, job_id, process = start(way, workers, noukai)
    worker = workers.worker_of(process)
    os.kill(worker.pid, signal.SIGTERM)
    wait_for_polls(run, job_id)
    worker.kill()
    check_second_try(run, job_id)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", WAYS)
def test_cold_shutdown(way: str, workers: Deployment, noukai: NoukaiProcess) -> None:
    """A worker that does not wait for its tasks costs no second job."""
    run, job_id, process = start(way, workers, noukai)
    worker = workers.worker_of(process)
    os.kill(worker.pid, signal.SIGQUIT)
    wait_until(lambda: not worker.running, "the worker's end")
    check_second_try(run, job_id)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", WAYS)
def test_one_task_is_evicted(way: str, workers: Deployment, noukai: NoukaiProcess) -> None:
    """The supervisor of a task ends it, as when its pod is evicted: the job is left running."""
    run, job_id, process = start(way, workers, noukai)
    os.kill(psutil.Process(process).ppid(), signal.SIGTERM)
    check_second_try(run, job_id)
