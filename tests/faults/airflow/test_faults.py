"""Hundreds of jobs in a real triggerer while a fifth of all requests encounter a fault."""

from __future__ import annotations

import pytest

from devtools.processes import wait_until
from tests.faults import scale
from tests.faults.airflow.crowd import CrowdedAirflow, finish, held, submit, watched
from tests.faults.balance import check_balance, check_share
from tests.faults.kinds import KINDS, RACE, REFUSED, switch_on
from tests.faults.network import Network
from tests.faults.noukai import NoukaiProcess

# A thousand jobs get few polls, since each 429 halves the rate limit.
MAX_POLLS = 3

WAIT_SECONDS = 1200.0 if scale.FULL else 240.0

MIXES = {"mixed": list(KINDS), **({kind: [kind] for kind in KINDS} if scale.FULL else {})}

pytestmark = pytest.mark.timeout(WAIT_SECONDS + 300)


@pytest.mark.parametrize("mix", MIXES)
def test_faults(airflow: CrowdedAirflow, noukai: NoukaiProcess, network: Network, mix: str) -> None:
    """With any faults, each job has one event, which has its final state, and no job is left over.

    The network sometimes refuses connections; Noukai causes all other faults.
    """
    kinds = MIXES[mix]
    wanted = watched(scale.JOBS, MAX_POLLS) if mix == "mixed" else watched(scale.JOBS_OF_ONE_KIND, 1)
    switch_on(noukai.control, *(kind for kind in kinds if kind != REFUSED))
    jobs = submit(noukai.base_url, wanted)
    if REFUSED in kinds:
        with network.flickering(every=4, for_seconds=1):
            crowd = airflow.defer(jobs)
            reports = crowd.reports(WAIT_SECONDS)
        assert any("ConnectError" in crowd.log(place) for place in range(len(jobs)))
    else:
        reports = airflow.defer(jobs).reports(WAIT_SECONDS)
    check_balance(noukai.control.jobs(), (plan.message for plan in wanted), reports)
    if kinds != [REFUSED]:
        check_share(noukai.control.requests(), scale.SHARE, *(["submit"] if kinds == [RACE] else []))


def test_restart_in_the_middle(airflow: CrowdedAirflow, noukai: NoukaiProcess) -> None:
    """If Noukai is killed and restarted while triggers wait, each job still has one event."""
    jobs = submit(noukai.base_url, held(scale.JOBS_OF_ONE_KIND))
    crowd = airflow.defer(jobs, conn_id="noukai_direct")
    crowd.wait_until_watched(noukai.control)
    noukai.kill()
    wait_until(lambda: " failed" in crowd.log(0), "a poll that fails")
    noukai.start()
    finish(noukai.control, jobs)
    check_balance(noukai.control.jobs(), (job.plan.message for job in jobs), crowd.reports())
