"""The clock of a triggerer moved by an hour while jobs wait.

A trigger keeps its deadline as a point in time. When it starts, it reads the clock once, and from then on
counts the seconds that are left, so a clock that is moved under it changes nothing. A triggerer that starts
goes by the clock that it finds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from devtools.processes import Component
from tests.faults.airflow.crowd import Crowd, CrowdedAirflow, finish, held, submit
from tests.faults.airflow.turned_clock import TurnedClock
from tests.faults.balance import check_balance
from tests.faults.noukai import NoukaiProcess

HOUR = 3600
JOBS = 20

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> TurnedClock:
    """The clock of the triggerer."""
    return TurnedClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def triggerer(airflow: CrowdedAirflow, clock: TurnedClock) -> Iterator[Component]:
    """A triggerer that takes the queue `turned` alone."""
    component = airflow.turned_triggerer(clock.environment, "turned")
    yield component
    component.kill()


@pytest.fixture(autouse=True)
def true_again(clock: TurnedClock) -> Iterator[None]:
    """Set the clock right after a test."""
    yield
    clock.turn(0)


def waiting(airflow: CrowdedAirflow, noukai: NoukaiProcess, seconds: float) -> Crowd:
    """Let jobs wait that do not end by themselves, each with so long to its deadline."""
    jobs = submit(noukai.base_url, held(JOBS))
    crowd = airflow.defer(jobs, deadline=time.time() + seconds, queue="turned")
    crowd.wait_until_watched(noukai.control)
    return crowd


def reasons(crowd: Crowd) -> set[str]:
    """Return why the tasks were woken."""
    return {event["reason"] for event in crowd.wait_for_events()}


def test_a_clock_that_is_moved_ends_no_wait(
    airflow: CrowdedAirflow, noukai: NoukaiProcess, clock: TurnedClock, triggerer: Component
) -> None:
    """Jobs whose deadline is a while off are waited for to their end, wherever the clock goes."""
    crowd = waiting(airflow, noukai, HOUR / 2)
    for turned in (HOUR, -HOUR):
        clock.turn(turned)
        crowd.wait_until_watched(noukai.control)
    assert not crowd.events()
    finish(noukai.control, crowd.jobs)
    messages = [job.plan.message for job in crowd.jobs]
    check_balance(noukai.control.jobs(), messages, crowd.reports())


def test_a_clock_that_is_moved_back_puts_no_deadline_off(
    airflow: CrowdedAirflow, noukai: NoukaiProcess, clock: TurnedClock, triggerer: Component
) -> None:
    """A deadline comes when the seconds are over that were left when the trigger started."""
    deadline = time.time() + 15
    crowd = waiting(airflow, noukai, deadline - time.time())
    clock.turn(-HOUR)
    assert time.time() < deadline, "the jobs were waited for too late"
    assert reasons(crowd) == {"timed_out"}
    assert time.time() >= deadline


def test_a_triggerer_that_starts_with_a_wrong_clock(
    airflow: CrowdedAirflow, noukai: NoukaiProcess, clock: TurnedClock, triggerer: Component
) -> None:
    """A deadline that has passed by the clock that a triggerer starts with is told at once; no job ends."""
    crowd = waiting(airflow, noukai, HOUR / 2)
    triggerer.terminate()
    clock.turn(HOUR)
    triggerer.start()
    assert reasons(crowd) == {"timed_out"}
    assert noukai.control.counts()["cancel"] == 0
