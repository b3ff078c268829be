"""The triggerer's network is cut while triggers wait, for less and for more than the retry window."""

from __future__ import annotations

import time
from uuid import uuid4

import pytest

from devtools.processes import wait_until
from tests.e2e_airflow.conftest import Run
from tests.faults import scale
from tests.faults.airflow.conftest import CUT_SECONDS
from tests.faults.airflow.crowd import CrowdedAirflow, finish, held, submit
from tests.faults.balance import check_balance
from tests.faults.network import CUTS, Network
from tests.faults.noukai import NoukaiProcess

pytestmark = pytest.mark.timeout(600)

TASKS = 3


@pytest.mark.parametrize("how", CUTS)
def test_a_cut_within_the_retry_window(
    airflow: CrowdedAirflow, noukai: NoukaiProcess, network: Network, how: str
) -> None:
    """A cut network ends no wait: jobs that end during or after the cut have one event each."""
    jobs = submit(noukai.base_url, held(scale.JOBS_OF_ONE_KIND))
    crowd = airflow.defer(jobs, conn_id="noukai_long_retry")
    crowd.wait_until_watched(noukai.control)
    network.cut(how)
    finish(noukai.control, jobs[::2])
    time.sleep(CUT_SECONDS)  # this is the cut
    assert not crowd.events()
    network.restore()
    finish(noukai.control, jobs[1::2])
    check_balance(noukai.control.jobs(), (job.plan.message for job in jobs), crowd.reports())
    assert noukai.control.counts()["cancel"] == 0


def test_cuts_beyond_the_retry_window(
    airflow: CrowdedAirflow, noukai: NoukaiProcess, network: Network
) -> None:
    """A cut beyond the retry window resumes the tasks, and loses no job.

    If Noukai is available again, the task defers again; otherwise it fails, and its retry attaches.
    """
    run = Run(airflow, noukai.control, "cut_off", f"cut-off-{uuid4().hex[:8]}")
    noukai.control.script(run.flow, outcome="never")
    run.start()
    for place in range(TASKS):
        run.wait_until_watched(place)

    network.cut("refused")
    for place in range(TASKS):
        wait_until(
            lambda place=place: run.state(map_index=place) != "deferred", "the end of the retry window"
        )
    network.restore()
    # A task that was resumed before has failed by now, maybe more than once, and its retry defers.
    for place in range(TASKS):
        wait_until(lambda place=place: deferrals(run, place) >= 2, "another deferral")
        run.wait_for("deferred", map_index=place)

    before = [tries(run, place) for place in range(TASKS)]
    network.cut("silent")
    for place in range(TASKS):
        wait_until(lambda place=place: tries(run, place) > before[place], "the retry")
    network.restore()
    jobs = run.jobs()
    assert len(jobs) == TASKS
    for job in jobs:
        noukai.control.finish(job["id"])
    for place in range(TASKS):
        assert run.wait_for(map_index=place) == "success"
    assert (run.submissions(), len(run.jobs())) == (TASKS, TASKS)
    assert noukai.control.counts()["cancel"] == 0


def deferrals(run: Run, place: int) -> int:
    return run.logs(map_index=place).count("deferred (waiting in the triggerer)")


def tries(run: Run, place: int) -> int:
    return int(run.airflow.task(run.dag_id, run.run_id, run.task_id, place)["try_number"])
