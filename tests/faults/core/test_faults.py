"""Hundreds of jobs through the core while a fifth of all requests meet a fault; at full size a thousand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from devtools.processes import wait_until
from tests.faults import scale
from tests.faults.balance import about, check_balance, check_share
from tests.faults.core.crowd import DRIVERS
from tests.faults.jobs import plans
from tests.faults.kinds import KINDS, RACE, REFUSED, switch_on
from tests.faults.noukai import NoukaiProcess

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("driver", DRIVERS)
def test_one_kind_of_fault(noukai: NoukaiProcess, driver: str, kind: str) -> None:
    """With any kind of fault, each submission has one job and each job one report."""
    wanted = plans(scale.JOBS_OF_ONE_KIND, with_endless=True)
    switch_on(noukai.control, kind)
    reports, refused = DRIVERS[driver](noukai.base_url, wanted, scale.SHARE if kind == REFUSED else 0.0)
    check_balance(noukai.control.jobs(), (plan.message for plan in wanted), reports)
    if kind == REFUSED:
        assert about(refused, scale.SHARE, len(wanted))
    else:
        check_share(noukai.control.requests(), scale.SHARE, *(["submit"] if kind == RACE else []))


@pytest.mark.parametrize("driver", DRIVERS)
def test_all_kinds_of_faults(noukai: NoukaiProcess, driver: str) -> None:
    """With every kind of fault among the requests of the same jobs, the books balance too."""
    wanted = plans(scale.JOBS, with_endless=True)
    refused = scale.SHARE / len(KINDS)
    switch_on(noukai.control, *KINDS, share=scale.SHARE - refused)
    reports, met = DRIVERS[driver](noukai.base_url, wanted, refused)
    check_balance(noukai.control.jobs(), (plan.message for plan in wanted), reports)
    check_share(noukai.control.requests(), scale.SHARE - refused)
    assert met > refused / 2


@pytest.mark.parametrize("driver", DRIVERS)
def test_restart_in_the_middle(noukai: NoukaiProcess, driver: str) -> None:
    """When Noukai is killed and started again amid the submissions, the books balance."""
    wanted = plans(scale.JOBS)
    with ThreadPoolExecutor(1) as aside:
        run = aside.submit(DRIVERS[driver], noukai.base_url, wanted)
        wait_until(
            lambda: run.done() or len(noukai.control.jobs()) >= scale.JOBS // 3,
            "a third of the jobs",
            pause=0.01,
        )
        noukai.kill()
        assert not run.done(), "the run was over before the restart"
        noukai.start()
        reports, _ = run.result()
    check_balance(noukai.control.jobs(), (plan.message for plan in wanted), reports)
