"""Flow runs that a person resumes: the jobs from before the pause, and the deadlines after it.

All runs are started at once; each test checks its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from devtools.prefect_server import LocalPrefect
    from tests.e2e_prefect.conftest import Run, Runs

ENDLESS = {"outcome": "never"}


@pytest.fixture(scope="module")
def started(runs: Runs) -> dict[str, Run]:
    """The flow runs, all at once."""
    return {
        "paused": runs.start("paused", script=ENDLESS, timeout=5.0),
        "suspended": runs.start("suspended", script={"after_seconds": 1}),
    }


def test_a_deadline_after_a_pause(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """A job whose flow run was paused before is cancelled at its deadline."""
    run = started["paused"]
    run.wait_for("Paused")
    prefect.resume(run.id)
    (job,) = run.wait_for_jobs(1)
    assert run.wait_for("TimedOut", "Failed", "Completed") != "Completed"
    assert (run.control.job(job)["state"], run.cancels(job)) == ("cancelled", 1)


def test_a_job_from_before_a_suspension(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """A resumed flow run takes the output of its job, even in another process, and submits no second one."""
    run = started["suspended"]
    run.wait_for("Suspended")
    prefect.resume(run.id)
    assert run.wait_for() == "Completed"
    assert run.submissions() == 1
