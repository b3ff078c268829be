"""Flow runs of a process worker behave like those of served deployments."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devtools.processes import wait_until
from tests.e2e_prefect.conftest import WAIT_SECONDS

if TYPE_CHECKING:
    from devtools.prefect_server import LocalPrefect
    from tests.e2e_prefect.conftest import Run, Runs

FLOWS = Path(__file__).parent / "flows"
ENDLESS = {"outcome": "never"}


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
    """Cancelling a flow run cancels each of its jobs once, before Prefect kills the process."""
    run = started[style]
    jobs = run.wait_for_jobs(3, "running")

    run.cancel()

    run.wait_until_cancelled()
    assert [job["state"] for job in run.jobs()] == ["cancelled"] * 3
    assert [run.cancels(job) for job in jobs] == [1, 1, 1]
    assert run.submissions() == 3


def test_process_killed(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """A flow run of a killed process attaches to its job when it is retried."""
    run = started["called"]
    (job,) = run.wait_for_jobs(1, "running")
    os.kill(prefect.flow_run_process(run.id), signal.SIGKILL)
    assert run.wait_for("Crashed") == "Crashed"
    polls = run.control.counts(job)["poll"]

    def attached_again() -> bool:
        # A worker of Prefect 3.6 reports a crash twice, and its second report undoes a retry between them.
        if prefect.state(run.id) == "Crashed":
            prefect.retry(run.id)
        return run.control.counts(job)["poll"] > polls

    wait_until(attached_again, "the retry to poll the job", WAIT_SECONDS)
    run.control.finish(job)
    assert run.wait_for() == "Completed"
    assert (run.submissions(), run.cancels(job)) == (1, 0)
