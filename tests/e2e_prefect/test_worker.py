"""Flow runs of a process worker: what holds for served deployments holds for them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devtools.processes import wait_until

if TYPE_CHECKING:
    from devtools.prefect_server import LocalPrefect
    from tests.e2e_prefect.conftest import Run, Runs

FLOWS = Path(__file__).parent / "flows"
ENDLESS = {"outcome": "never"}

# A run that is still there 30 s after the cancel is killed: what is Cancelled by then was not.
CANCELLED_WITHIN = 15.0


@pytest.fixture(scope="module")
def started(runs: Runs, prefect: LocalPrefect) -> Iterator[dict[str, Run]]:
    """Flow runs of a worker, by the name of the flow."""
    styles = ("gathered", "mapped", "called")
    prefect.deploy(*(f"{FLOWS / 'call_styles.py'}:{style}" for style in styles))
    worker = prefect.work()
    yield {style: runs.start(style, deployment="processes", script=ENDLESS) for style in styles}
    prefect.end(worker)


@pytest.mark.parametrize("style", ["gathered", "mapped"])
def test_cancel(started: dict[str, Run], style: str) -> None:
    """Cancelling a flow run cancels each of its jobs once, and ends the flow run as Cancelled within 15 s."""
    run = started[style]
    jobs = run.wait_for_jobs(3, "running")

    run.cancel()

    assert run.wait_for(timeout=CANCELLED_WITHIN) == "Cancelled"
    assert [job["state"] for job in run.jobs()] == ["cancelled"] * 3
    assert [run.cancels(job) for job in jobs] == [1, 1, 1]
    assert run.submissions() == 3


def test_process_killed(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """A flow run of a killed process attaches to its job when it is retried."""
    run = started["called"]
    (job,) = run.wait_for_jobs(1, "running")
    os.kill(prefect.flow_run_process(run.id), signal.SIGKILL)
    assert run.wait_for("Crashed") == "Crashed"
    looks = run.control.counts(job)["poll"]

    def attached_again() -> bool:
        # A worker of Prefect 3.6 reports a crash twice, and its second report undoes a retry between them.
        if prefect.state(run.id) == "Crashed":
            prefect.retry(run.id)
        return run.control.counts(job)["poll"] > looks

    wait_until(attached_again, "the retry to look at the job")
    run.control.finish(job)
    assert run.wait_for() == "Completed"
    assert (run.submissions(), run.cancels(job)) == (1, 0)
