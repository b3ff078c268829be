"""Decisions over minutes, with a clock that the test turns by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from noukai_core import Submission
from noukai_core.answers import Answer
from noukai_core.budget import LookBudget
from noukai_core.calls import Call, cancel, outcome, submit
from noukai_core.errors import APIError, Unavailable
from noukai_core.inputs import FlowPath
from noukai_core.settings import Settings
from noukai_core.steps import Pause, Request, Steps, T, send_patiently
from noukai_core.submission import submit_once
from noukai_core.watch import Watch
from tests.core.wire import KEY

FLOW = FlowPath("acme", "spelling", "grade-3")
NOTHING = Answer(404, {}, b'{"detail": {"code": "SESSION_NOT_FOUND"}}')
MISSING = Answer(404, {}, b'{"detail": {"code": "JOB_NOT_FOUND"}}')
FAULT = Answer(502, {}, b"")
RUNNING = Answer(200, {}, b'{"status": "running"}')
COMPLETED = Answer(200, {}, b'{"status": "completed"}')


class Turned:
    """A clock, and a server whose answers depend on it."""

    def __init__(self, answer: Callable[[Call[Any], float], Answer | APIError]) -> None:
        self.now = 0.0
        self.sent: list[str] = []
        self._answer = answer

    def __call__(self) -> float:
        return self.now

    def run(self, steps: Steps[T]) -> T:
        reply: Any = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                decided: T = end.value
                return decided
            reply = None
            if isinstance(step, Pause):
                self.now += step.seconds
            elif isinstance(step, Request):
                self.sent.append(step.call.method)
                reply = outcome(step.call, self._answer(step.call, self.now), KEY)


def test_a_job_made_at_the_end_of_a_long_request_is_found() -> None:
    """The time in which a job must show up counts from the end of the request, however long it took."""

    def answer(call: Call[Any], now: float) -> Answer | APIError:
        if call.submits:
            clock.now += 120
            return Unavailable("timed out")
        return NOTHING if now < 170 else Answer(200, {}, b'{"executions": [{"executionId": "job-7"}]}')

    clock = Turned(answer)
    call = submit(FLOW, None, b"{}", {})
    submitted = clock.run(submit_once(call, Submission.new(), FLOW, clock, recovery_timeout=60, patience=300))
    assert submitted.job.id == "job-7"
    assert clock.sent.count("POST") == 1


def test_a_job_that_an_earlier_try_submitted_after_minutes_of_refusals_is_found() -> None:
    """An earlier try may have sent its request minutes after it began, so its job may still show up."""

    def answer(call: Call[Any], now: float) -> Answer | APIError:
        if call.submits:
            return Answer(202, {}, b'{"executionId": "job-8"}')
        return NOTHING if now < 30 else Answer(200, {}, b'{"executions": [{"executionId": "job-7"}]}')

    clock = Turned(answer)
    began = datetime.now(UTC) - timedelta(seconds=280)
    call = submit(FLOW, None, b"{}", {})
    submission = Submission(Submission.new().id, sent_at=began)
    submitted = clock.run(submit_once(call, submission, FLOW, clock, recovery_timeout=60, patience=300))
    assert (submitted.job.id, submitted.at) == ("job-7", began)
    assert "POST" not in clock.sent


def test_one_fault_after_a_pause_longer_than_the_patience_is_waited_out() -> None:
    """A job that is looked at every ten minutes is not given up for one 502."""
    answers = iter([RUNNING, FAULT, RUNNING, COMPLETED])
    clock = Turned(lambda call, now: next(answers))
    settings = Settings.of(
        api_key="nk_test_key",
        base_url="https://noukai.test/api/v1",
        org=None,
        project=None,
        timeout=30,
        poll_interval=600,
        fault_patience=300,
        not_found_grace=60,
        recovery_timeout=60,
        looks_per_second=50,
        submissions_in_flight=1,
        max_answer_bytes=1000,
    )
    status = clock.run(Watch(FLOW, "job-1", settings, LookBudget(50), clock).steps())
    assert status.finished


def test_a_cancel_goes_on_until_the_race_is_over() -> None:
    """A job that the server comes to know in the last second of the race is cancelled."""
    clock = Turned(lambda call, now: MISSING if now < 59 else Answer(200, {}, b"{}"))
    clock.run(send_patiently(cancel(FLOW, "job-1"), clock, missing_until=60))
    assert 59 <= clock.now <= 60


def test_a_fault_late_in_the_race_does_not_stop_a_cancel() -> None:
    """The patience with faults counts from the last answer, and a 404 inside the race is one."""
    answers = iter([MISSING] * 4 + [FAULT, Answer(200, {}, b"{}")])
    clock = Turned(lambda call, now: next(answers))
    clock.run(send_patiently(cancel(FLOW, "job-1"), clock, missing_until=60))
    assert len(clock.sent) == 6
