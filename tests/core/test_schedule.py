"""The decisions over time, with a clock that the test moves: no request is made and nothing sleeps."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest

from noukai_core import JobNotFoundError, JobState, JobStatus, JobTimeoutError, RateLimitError, TransientError
from noukai_core._api import parsing
from noukai_core._engine import schedule
from noukai_core._engine.effects import Send, Sleep
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._engine.wait import Poller
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath
from noukai_core.errors import APIError

pytestmark = pytest.mark.usefixtures("ticks_from_zero")

RUNNING = JobStatus(id="job-1", state=JobState.RUNNING)
DONE = JobStatus(id="job-1", state=JobState.COMPLETED)
FLOW = FlowPath("acme", "spelling", "grade-3")
HttpResponse = Callable[[float], JobStatus | APIError]


def settings(**changes: float | None) -> ClientOptions:
    defaults = {
        "timeout": 30.0,
        "poll_interval": None,
        "retry_timeout": 300.0,
        "not_found_grace": 60.0,
        "recovery_timeout": 60.0,
        "max_polls_per_second": 50.0,
    }
    return ClientOptions.of(
        api_key="nk_test",
        base_url="https://noukai.test",
        org=None,
        project=None,
        max_concurrent_submissions=16,
        max_response_bytes=1000,
        **{**defaults, **changes},  # type: ignore[arg-type]
    )


class Waiter:
    """One wait for one job, on a separate clock; `polls` are the times of its polls."""

    def __init__(
        self,
        response: HttpResponse,
        *,
        timeout: float | None = None,
        submitted_at: float | None = 0.0,
        limiter: PollRateLimiter | None = None,
        **changes: float | None,
    ) -> None:
        self.now = 0.0
        self.polls: list[float] = []
        self.allowed: list[float | None] = []
        self._response_at = response
        self._steps = Poller(
            FLOW,
            "job-1",
            settings(**changes),
            limiter or PollRateLimiter(50.0),
            lambda: self.now,
            submitted_at=submitted_at,
            timeout=timeout,
        ).effects()

    def run(self) -> JobStatus:
        """Turns the clock from step to step until the wait has ended."""
        while True:
            ended = self.advance()
            if ended is not None:
                return ended

    def advance(self) -> JobStatus | None:
        """Continues to the next pause or to the end."""
        response: JobStatus | APIError | None = None
        while True:
            try:
                step = self._steps.send(response)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            response = None
            if isinstance(step, Sleep):
                assert step.seconds >= 0
                self.now += step.seconds
                return None
            if isinstance(step, Send):
                self.polls.append(self.now)
                self.allowed.append(step.timeout)
                response = self._response_at(self.now)


def finishing(after: float) -> HttpResponse:
    return lambda now: DONE if now >= after else RUNNING


def down(now: float) -> APIError:
    return TransientError("HTTP 503", status_code=503)


@pytest.mark.parametrize(
    ("now", "pause", "moved"),
    [(0.0, 1.0, 1.0), (5.02, 1.0, 0.98), (5.08, 1.0, 1.02), (5.0, 0.96, 1.0), (5.0, 10.0, 10.0)],
)
def test_a_pause_ends_with_those_of_other_jobs(now: float, pause: float, moved: float) -> None:
    """Polls happen at ten moments per second, so that a process does not wake up for each one."""
    assert schedule.align_to_tick(now, pause) == pytest.approx(moved)


def test_processes_poll_at_moments_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ticks of a process shift the polls of all its jobs, and those of no other process."""
    monkeypatch.setattr(schedule, "_FIRST_TICK", 0.03)
    assert schedule.align_to_tick(5.0, 1.0) == pytest.approx(1.03)
    assert schedule.pause_until_slot(5.0, 5.04) == pytest.approx(0.13)
    assert schedule.pause_until_slot(5.0, 5.13) == pytest.approx(0.13)
    assert schedule.pause_until_slot(5.0, 5.0) == 0.0


@pytest.mark.parametrize("pause", [0.0, 0.01, 0.5, 300.0, 1e308])
def test_a_pause_that_the_policy_never_chooses_is_kept(pause: float) -> None:
    """A caller that wants shorter or longer intervals than the default gets exactly those."""
    assert schedule.align_to_tick(5.02, pause) == pause


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("age", "pause"),
    [(0, 1), (5, 1), (10, 1), (11, 1.1), (60, 6), (300, 30), (600, 60), (601, 60), (86_400, 60)],
)
def test_the_pause_is_a_tenth_of_the_age(age: float, pause: float, jitter: float) -> None:
    """10 % of the age, never under 1 s or over 60 s, moved by the jitter of ±10 % and by nothing else."""
    assert schedule.pause_before_poll(age, jitter=jitter) == pytest.approx(pause * (0.9 + 0.2 * jitter))


def test_the_jitter_spreads_over_its_whole_range() -> None:
    """Jobs that began together do not stay together."""
    pauses = [schedule.pause_before_poll(100) for _ in range(2_000)]
    assert 9.0 <= min(pauses) < 9.2
    assert 10.8 < max(pauses) <= 11.0


def test_a_fixed_interval_is_fixed() -> None:
    """What the user chose has neither growth nor jitter."""
    assert {schedule.pause_before_poll(age, interval=7.5) for age in (0, 60, 90_000)} == {7.5}


@pytest.mark.parametrize("run_time", [0.5, 3, 10, 30, 100, 300, 600, 3_600, 86_400])
def test_the_end_is_seen_within_a_tenth_of_the_run_time(run_time: float) -> None:
    """The lag is at most 11 % of the job's run time, within the shortest and the longest pause."""
    for seed in range(20):
        random.seed(seed)
        waiter = Waiter(finishing(run_time))
        waiter.run()
        lag = waiter.polls[-1] - run_time
        assert 0 <= lag <= min(max(0.11 * run_time, 1.1), 66.0) + 1e-6


def test_the_first_poll_comes_at_once() -> None:
    """A job that has ended already is seen without a pause."""
    waiter = Waiter(finishing(0))
    waiter.run()
    assert waiter.polls == [0.0]


def test_the_number_of_polls_grows_with_the_logarithm_of_the_run_time() -> None:
    """Six times the run time costs the same few extra polls, up to 10 minutes; then one per minute."""
    random.seed(1)
    polls = {}
    for run_time in (10, 60, 360, 600, 4_200):
        waiter = Waiter(finishing(run_time))
        waiter.run()
        polls[run_time] = len(waiter.polls)
    assert polls[10] <= 13
    sixfold = math.log(6) / math.log(1.09) + 2
    assert polls[60] - polls[10] <= sixfold
    assert polls[360] - polls[60] <= sixfold
    assert polls[4_200] - polls[600] <= 3_600 / 54 + 1


def test_the_age_counts_from_the_submission_and_not_from_the_wait() -> None:
    """A job that another process submitted an hour ago is polled as the hour-old job that it is."""
    waiter = Waiter(finishing(200), submitted_at=-3_600.0)
    waiter.run()
    assert all(later - sooner >= 54 for sooner, later in pairwise(waiter.polls))


@pytest.mark.parametrize("timeout", [0.3, 5.0, 47.0, 1_000.0])
@pytest.mark.parametrize("interval", [None, 600.0])
def test_the_last_pause_is_cut_to_the_deadline(timeout: float, interval: float | None) -> None:
    """The wait ends exactly at its deadline, with a last poll there."""
    waiter = Waiter(finishing(math.inf), timeout=timeout, poll_interval=interval)
    with pytest.raises(JobTimeoutError) as caught:
        waiter.run()
    assert waiter.now == pytest.approx(timeout)
    assert waiter.polls[-1] == pytest.approx(timeout)
    assert caught.value.status == RUNNING


def test_a_job_that_ends_at_the_deadline_is_not_timed_out() -> None:
    """The result of the last poll counts."""
    waiter = Waiter(finishing(99.9), timeout=100.0, poll_interval=1_000.0)
    assert waiter.run() == DONE


def test_a_poll_near_the_deadline_is_given_little_time() -> None:
    """The request's own timeout shrinks with the remaining time, down to a second."""
    waiter = Waiter(finishing(math.inf), timeout=100.0, poll_interval=45.0)
    with pytest.raises(JobTimeoutError):
        waiter.run()
    assert waiter.allowed == [30.0, 30.0, pytest.approx(10.0), 1.0]


def test_faults_are_waited_out_by_time() -> None:
    """Five minutes without a successful response is the end: not a poll sooner, and not much later."""
    waiter = Waiter(down)
    with pytest.raises(TransientError):
        waiter.run()
    assert waiter.now == pytest.approx(300.0)


def test_one_good_response_renews_the_retry_window() -> None:
    """Hours of transient errors with a successful response every four minutes do not end a wait."""
    waiter = Waiter(lambda now: DONE if now > 7_200 else RUNNING if now % 240 < 66 else down(now))
    assert waiter.run() == DONE


def test_after_a_fault_an_old_job_is_polled_sooner() -> None:
    """After an error, no job waits a minute to see that the server is back, and there is no storm either."""
    waiter = Waiter(lambda now: down(now) if 3_600 < now < 3_600 + 200 else finishing(4_000)(now))
    waiter.run()
    faulty = [poll for poll in waiter.polls if 3_600 < poll < 3_800]
    assert 6 <= len(faulty) <= 12
    assert all(later - sooner >= 0.9 for sooner, later in pairwise(faulty))


@pytest.mark.parametrize("retry_after", [5.0, 90.0])
def test_retry_after_wins_when_it_is_longer(retry_after: float) -> None:
    """No poll comes before the server allows one; a shorter `Retry-After` changes nothing."""
    reported = [True]

    def limited(now: float) -> JobStatus | APIError:
        if now >= 1_000 and reported:
            reported.clear()
            return RateLimitError("HTTP 429", status_code=429, retry_after=retry_after)
        return finishing(2_000)(now)

    waiter = Waiter(limited)
    waiter.run()
    first = next(index for index, poll in enumerate(waiter.polls) if poll >= 1_000)
    assert waiter.polls[first + 1] - waiter.polls[first] >= max(retry_after, 54) - 1e-6


def test_the_race_counts_from_the_submission() -> None:
    """404 is retried until 60 s after the submission, is no error until then, and final afterwards."""

    def missing(now: float) -> APIError:
        return JobNotFoundError("HTTP 404", status_code=404)

    waiter = Waiter(missing, submitted_at=-50.0, retry_timeout=1.0)
    with pytest.raises(JobNotFoundError):
        waiter.run()
    assert waiter.now == pytest.approx(10.0)
    assert len(waiter.polls) < 10
    attached = Waiter(missing, submitted_at=None)
    with pytest.raises(JobNotFoundError):
        attached.run()
    assert attached.polls == [0.0]


def test_the_race_uses_up_no_retry_window() -> None:
    """A server that does not know the job yet has responded: the retry window starts there."""

    def respond(now: float) -> JobStatus | APIError:
        if now < 30:
            return JobNotFoundError("HTTP 404", status_code=404)
        return down(now) if now < 34 else DONE

    waiter = Waiter(respond, retry_timeout=8.0)
    assert waiter.run() == DONE


NOW = datetime(2026, 7, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
        ("Wed, 01 Jul 2026 12:00:30 GMT", 30.0),
        ("Wednesday, 01-Jul-26 12:00:30 GMT", 30.0),
        ("Wed Jul  1 12:00:30 2026", 30.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("٣", None),
        ("Mon, 99 Foo 2026", None),
        ("Wed, 01 Jul 99999 12:00:00 GMT", None),
        ("Wed, 01 Jul 2026 12:00:00 +99999999999", None),
        ("9" * 400, None),
        ("\x1c0", None),
    ],
    ids=ascii,
)
def test_a_retry_after_is_read_in_every_legal_form(header: str | None, seconds: float | None) -> None:
    """Seconds or any of HTTP's three dates; what is neither is passed over."""
    assert parsing.retry_after(header, NOW) == seconds
