"""A triggerer whose clock is set back or forward by an hour while triggers wait.

The deadline of a trigger is a point in time. When the trigger starts, it reads the clock once and then counts
the remaining seconds, so later changes of the clock do not matter. A triggerer that starts uses the current
clock.
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

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> TurnedClock:
    """The clock of the triggerer."""
    return TurnedClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def triggerer(airflow: CrowdedAirflow, clock: TurnedClock) -> Iterator[Component]:
    """A triggerer with only the queue `turned`."""
    component = airflow.turned_triggerer(clock.environment, "turned")
    yield component
    component.kill()


@pytest.fixture(autouse=True)
def true_again(clock: TurnedClock) -> Iterator[None]:
    """Reset the clock after a test."""
    yield
    clock.turn(0)


def waiting(airflow: CrowdedAirflow, noukai: NoukaiProcess, seconds: float) -> Crowd:
    """Let triggers wait for jobs that do not end, with a number of seconds until their deadline."""
    jobs = submit(noukai.base_url, held(JOBS))
    crowd = airflow.defer(jobs, deadline=time.time() + seconds, queue="turned")
    crowd.wait_until_watched(noukai.control)
    return crowd


def reasons(crowd: Crowd) -> set[str]:
    """Return why the tasks were resumed."""
    return {event["reason"] for event in crowd.wait_for_events()}


def test_a_clock_that_is_changed_ends_no_wait(
    airflow: CrowdedAirflow, noukai: NoukaiProcess, clock: TurnedClock, triggerer: Component
) -> None:
    """Changes of the clock do not end the wait for jobs whose deadline is far away."""
    crowd = waiting(airflow, noukai, HOUR / 2)
    for turned in (HOUR, -HOUR):
        clock.turn(turned)
        crowd.wait_until_watched(noukai.control)
    assert not crowd.events()
    finish(noukai.control, crowd.jobs)
    messages = [job.plan.message for job in crowd.jobs]
    check_balance(noukai.control.jobs(), messages, crowd.reports())


def test_a_clock_that_is_set_back_delays_no_deadline(
    airflow: CrowdedAirflow, noukai: NoukaiProcess, clock: TurnedClock, triggerer: Component
) -> None:
    """A deadline comes after the seconds that remained when the trigger started."""
    for seconds in (15, 60, 240):  # the busier the machine, the longer its triggers take to start
        deadline = time.time() + seconds
        crowd = waiting(airflow, noukai, seconds)
        if time.time() < deadline:
            break
    clock.turn(-HOUR)
    assert reasons(crowd) == {"timed_out"}
    assert time.time() >= deadline


def test_a_triggerer_that_starts_with_a_wrong_clock(
    airflow: CrowdedAirflow, noukai: NoukaiProcess, clock: TurnedClock, triggerer: Component
) -> None:
    """A triggerer whose clock is past the deadline resumes the tasks at once, and cancels no job."""
    crowd = waiting(airflow, noukai, HOUR / 2)
    triggerer.terminate()
    clock.turn(HOUR)
    triggerer.start()
    assert reasons(crowd) == {"timed_out"}
    assert noukai.control.counts()["cancel"] == 0
