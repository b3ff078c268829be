"""A crowd waits politely: the polls of all jobs of one process and key share one rate limit."""

from __future__ import annotations

import heapq
import random
import time
from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from noukai_core import APIError, ConnectionPoolTimeoutError, JobState, JobStatus, Noukai, RateLimitError
from noukai_core._engine.rate_limit import PollRateLimiter, shared_rate_limiter
from noukai_core._engine.wait import reach_slot
from tests.core.scripted_server import FLOW, ScriptedServer, rejection, state
from tests.core.test_schedule import HttpResponse, Waiter, finishing

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient


pytestmark = pytest.mark.usefixtures("ticks_from_zero")


def crowd(size: int, limiter: PollRateLimiter, response: HttpResponse, until: float) -> list[Waiter]:
    """Lets so many jobs that began together wait at the same time, on one clock, until then."""
    waiters = [Waiter(response, limiter=limiter) for _ in range(size)]
    turns = [(0.0, number) for number in range(size)]
    while turns:
        now, number = heapq.heappop(turns)
        waiter = waiters[number]
        waiter.now = now
        if waiter.advance() is None and waiter.now < until:
            heapq.heappush(turns, (waiter.now, number))
    return waiters


def polls_of(waiters: list[Waiter]) -> list[float]:
    return sorted(poll for waiter in waiters for poll in waiter.polls)


def most_within(polls: list[float], seconds: float) -> int:
    """The largest number of polls in any period of this length."""
    return max(bisect_left(polls, poll + seconds) - index for index, poll in enumerate(polls))


def test_a_thousand_young_jobs_stay_within_the_rate_limit() -> None:
    """A thousand jobs that would poll a thousand times per second poll 50 times, after one burst of five."""
    random.seed(2)
    waiters = crowd(1_000, PollRateLimiter(50.0), finishing(60), until=90)
    polls = polls_of(waiters)
    assert most_within(polls, 1.0) <= 50 + 5 + 6
    assert most_within([poll for poll in polls if poll > 2], 1.0) <= 50 + 6
    assert len(polls) >= 0.9 * 50 * 60
    assert all(waiter.polls[-1] >= 60 for waiter in waiters)


def test_the_pauses_stretch_evenly() -> None:
    """No job of a crowd starves: each gets about the same number of polls."""
    random.seed(3)
    waiters = crowd(500, PollRateLimiter(50.0), finishing(1_000), until=120)
    counts = [len(waiter.polls) for waiter in waiters]
    assert max(counts) - min(counts) <= 3


def test_one_job_alone_never_notices() -> None:
    """A single job, however short its interval, is polled as if there were no limit."""
    limiter = PollRateLimiter(50.0)
    slots = [limiter.reserve(now / 50) for now in range(1_000)]
    assert slots == [now / 50 for now in range(1_000)]


def test_the_polls_of_a_crowd_come_a_few_at_a_time() -> None:
    """A tenth of a second brings its share of the polls, and a process wakes up once for all of them."""
    limiter = PollRateLimiter(50.0)
    waits = [limiter.reserve(100.0) - 100.0 for _ in range(5 + 250)]
    assert waits[:5] == [0.0] * 5
    ticks = Counter(round(wait, 6) for wait in waits[5:])
    assert list(ticks) == pytest.approx([number / 10 for number in range(1, 51)])
    assert set(ticks.values()) <= {4, 5, 6}


@pytest.mark.parametrize("now", [100.0, 7.31, 16_790_001.07, 3.333333])
def test_a_tick_is_free_at_any_time(now: float) -> None:
    """Five of fifty polls per second may start at once, whatever the clock shows."""
    limiter = PollRateLimiter(50.0)
    waits = [limiter.reserve(now) - now for _ in range(6)]
    assert waits[:5] == [0.0] * 5
    assert 0 < waits[5] <= 0.1 + 0.02


def test_a_rate_limit_of_almost_nothing() -> None:
    """The smallest valid rate makes polls wait, and raises no error."""
    limiter = PollRateLimiter(1e-308)
    assert limiter.reserve(5.0) == 5.0
    assert limiter.reserve(5.0) > 1e300


def test_the_polls_at_many_jobs_are_made_together() -> None:
    """A thousand jobs below the rate limit are polled at ten moments per second."""
    random.seed(4)
    polls = polls_of(crowd(1_000, PollRateLimiter(1_000.0), finishing(120), until=120))
    late = [poll for poll in polls if 60 < poll < 70]
    assert len(late) > 1_000
    assert len({round(poll, 6) for poll in late}) <= 101


def places(limiter: PollRateLimiter, now: float) -> float:
    """The polls per second that the rate limit allows at this time, when many are requested."""
    limiter.reserve(now)
    waits = [limiter.reserve(now) for _ in range(2_000)]
    return 1_000 / (waits[1_999] - waits[999])


def test_a_complaint_halves_the_rate_limit_for_a_while() -> None:
    """After a 429, half of the rate is left, and it grows back evenly to its full value within a minute."""
    limiter = PollRateLimiter(60.0)
    assert places(limiter, 0.0) == pytest.approx(60, rel=0.01)
    limiter.slow_down(100.0)
    assert places(limiter, 100.0) == pytest.approx(30, rel=0.01)
    assert places(limiter, 115.0) == pytest.approx(45, rel=0.01)
    assert places(limiter, 130.0) == pytest.approx(60, rel=0.01)
    assert places(limiter, 500.0) == pytest.approx(60, rel=0.01)


def test_many_complaints_at_once_are_one() -> None:
    """The 429s of one crowd halve the rate once in ten seconds, not once each."""
    limiter = PollRateLimiter(60.0)
    for complaint in range(100):
        limiter.slow_down(1.0 + complaint / 100)
    assert places(limiter, 3.0) == pytest.approx(32, rel=0.01)
    limiter.slow_down(10.9)
    assert places(limiter, 11.0) == pytest.approx(40, rel=0.01)
    limiter.slow_down(11.0)
    assert places(limiter, 11.0) == pytest.approx(20, rel=0.01)


def test_a_complaint_now_and_then_leaves_a_quarter_of_the_rate_limit() -> None:
    """If 3 of 100 polls get a 429 by chance, a crowd keeps at least a quarter of its rate."""
    jitter, limiter, now, polls = random.Random(5), PollRateLimiter(50.0), 0.0, 0
    while now < 600:
        now = limiter.reserve(now)
        polls += 1
        if jitter.random() < 0.03:
            limiter.slow_down(now)
    assert polls / 600 > 50 / 4


@pytest.mark.parametrize(("whole", "floor"), [(50.0, 1.0), (1.0, 1.0), (0.2, 0.2)])
def test_the_rate_limit_never_dries_up(whole: float, floor: float) -> None:
    """However often the server complains, one poll per second is left, or the configured rate if lower."""
    limiter = PollRateLimiter(whole)
    for complaint in range(50):
        limiter.slow_down(complaint * 10.0)
        assert places(limiter, complaint * 10.0) >= floor * 0.999


def test_a_crowd_backs_off_when_the_server_complains(
    scripted: MakeClient, server: ScriptedServer, key: str
) -> None:
    """A 429 to one poll slows down every poll with that key, and with no other."""
    server.on("poll", rejection(429), state("completed", result="x"))
    client = scripted(max_polls_per_second=40.0)
    client.flow(FLOW).attach("job-1").wait(timeout_ms=20_000)
    mine = shared_rate_limiter("https://noukai.test/api/v1", key, 40.0)
    others = shared_rate_limiter("https://noukai.test/api/v1", key + "x", 40.0)
    assert mine is shared_rate_limiter("https://noukai.test/api/v1", key, 40.0)
    assert places(others, time.monotonic()) == pytest.approx(40)
    assert mine is not others
    assert places(mine, time.monotonic()) == pytest.approx(20, rel=0.1)


def test_the_rate_limit_is_shared_by_every_client_of_the_key(server: ScriptedServer, key: str) -> None:
    """A second client does not bypass the rate limit: two of them together poll no more often than one."""
    server.on("poll", state("running"))
    options = {
        "api_key": key,
        "base_url": "https://noukai.test/api/v1",
        "max_polls_per_second": 10.0,
        "poll_interval": 0.001,
    }
    with (
        Noukai(transport=server.transport, **options) as one,
        Noukai(transport=server.transport, **options) as two,
    ):
        begin = time.monotonic()
        watches = [client.flow(FLOW).attach("job-1") for client in (one, two)]
        for job in watches:
            with pytest.raises(TimeoutError):
                job.wait(timeout_ms=700)
        elapsed = time.monotonic() - begin
    assert len(server.made("poll")) <= 10 + 10 * elapsed + 3


def test_finished_jobs_leave_the_crowd() -> None:
    """A job that has ended uses no more slots."""
    random.seed(4)
    ended = JobStatus(id="job-1", state=JobState.FAILED)
    waiters = crowd(100, PollRateLimiter(50.0), lambda now: ended, until=10)
    assert [len(waiter.polls) for waiter in waiters] == [1] * 100


ONE_TOO_MANY = [
    pytest.param(RateLimitError("HTTP 429", status_code=429), id="429"),
    pytest.param(ConnectionPoolTimeoutError("no connection became free"), id="no connection"),
]


@pytest.mark.parametrize("refused", ONE_TOO_MANY)
def test_whoever_is_turned_away_waits_while_others_are_served(refused: APIError) -> None:
    """Ten minutes without a turn end no wait while the server responds to others of the same crowd."""
    limiter = PollRateLimiter(50.0)
    ended = JobStatus(id="job-1", state=JobState.COMPLETED)
    turned_away = Waiter(lambda now: refused if now < 600 else ended, limiter=limiter)
    served = Waiter(finishing(600), limiter=limiter)
    while turned_away.now < 600:
        waiter = min(turned_away, served, key=lambda each: each.now)
        waiter.advance()
    assert turned_away.run().state == "completed"


@pytest.mark.parametrize("refused", ONE_TOO_MANY)
def test_a_crowd_waits_for_a_slow_service(refused: APIError) -> None:
    """Five hundred jobs, of a service that responds five times a second, all wait on for half an hour."""
    random.seed(6)
    served: list[float] = []

    def respond_slowly(now: float) -> JobStatus | APIError:
        if served and now - served[-1] < 0.2:
            return refused
        served.append(now)
        return JobStatus(id="job-1", state=JobState.RUNNING)

    waiters = crowd(500, PollRateLimiter(50.0), respond_slowly, until=1_800)
    assert all(waiter.now >= 1_800 for waiter in waiters)
    assert len(polls_of(waiters)) < 3 * len(served)  # ten times as many, if the rate did not fall


@pytest.mark.parametrize("refused", ONE_TOO_MANY)
def test_whoever_is_turned_away_alone_gives_up(refused: APIError) -> None:
    """When the server responds to none of them, polls are retried for five minutes and no longer."""
    waiter = Waiter(lambda now: refused, limiter=PollRateLimiter(50.0))
    with pytest.raises(type(refused)):
        waiter.run()
    assert 300 <= waiter.now <= 400


def test_a_caller_that_is_always_busy_polls_at_last() -> None:
    """A slot that passed while the caller was busy is lost once, and the next one used however late."""
    now, limiter = 0.0, PollRateLimiter(1.0)
    limiter.reserve(now)
    effects = reach_slot(limiter, lambda: now, deadline=5.0)
    sleeps = 0
    while True:
        try:
            next(effects)
        except StopIteration as end:
            assert end.value
            break
        sleeps += 1
        now += 10.0
        limiter.reserve(now)
    assert sleeps == 2
