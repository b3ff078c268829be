"""Decisions over minutes, with a clock that the test turns by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from noukai_core import Submission
from noukai_core._api.endpoints import Call, cancel, submit
from noukai_core._api.parsing import HttpResponse
from noukai_core._engine.effects import send_with_retries
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._engine.submission_registry import SubmissionState
from noukai_core._engine.submit import submit_once
from noukai_core._engine.wait import Poller
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath
from noukai_core.errors import APIError, TransientError
from tests.core.turned_clock import Turned

FLOW = FlowPath("acme", "spelling", "grade-3")
NOTHING = HttpResponse(404, {}, b'{"detail": {"code": "SESSION_NOT_FOUND"}}')
MISSING = HttpResponse(404, {}, b'{"detail": {"code": "JOB_NOT_FOUND"}}')
FAULT = HttpResponse(502, {}, b"")
RUNNING = HttpResponse(200, {}, b'{"status": "running"}')
COMPLETED = HttpResponse(200, {}, b'{"status": "completed"}')


def test_a_job_made_at_the_end_of_a_long_request_is_found() -> None:
    """The time in which a job must show up counts from the end of the request, however long it took."""

    def respond(call: Call[Any], now: float) -> HttpResponse | APIError:
        if call.submits:
            clock.now += 120
            return TransientError("timed out")
        return NOTHING if now < 170 else HttpResponse(200, {}, b'{"executions": [{"executionId": "job-7"}]}')

    clock = Turned(respond)
    call = submit(FLOW, None, b"{}", {})
    submitted = clock.run(
        submit_once(
            call, Submission.new(), FLOW, clock, SubmissionState(), recovery_timeout=60, retry_timeout=300
        )
    )
    assert submitted.job.id == "job-7"
    assert clock.sent.count("POST") == 1


@pytest.mark.parametrize("age", [-600, 5, 280, 100_000])
def test_the_window_of_what_an_earlier_try_sent_begins_with_this_try(age: float) -> None:
    """However long ago an earlier try began, on whichever clock, its request may have arrived just now."""

    def respond(call: Call[Any], now: float) -> HttpResponse | APIError:
        if call.submits:
            return HttpResponse(202, {}, b'{"executionId": "job-8"}')
        return NOTHING if now < 59 else HttpResponse(200, {}, b'{"executions": [{"executionId": "job-7"}]}')

    clock = Turned(respond)
    began = datetime.now(UTC) - timedelta(seconds=age)
    call = submit(FLOW, None, b"{}", {})
    submission = Submission(Submission.new().id, last_sent_at=began)
    submitted = clock.run(
        submit_once(call, submission, FLOW, clock, SubmissionState(), recovery_timeout=60, retry_timeout=300)
    )
    assert (submitted.job.id, submitted.at) == ("job-7", began)
    assert "POST" not in clock.sent


def test_one_fault_after_a_pause_longer_than_the_retry_window_is_waited_out() -> None:
    """One 502 does not end the wait for a job that is polled every ten minutes."""
    responses = iter([RUNNING, FAULT, RUNNING, COMPLETED])
    clock = Turned(lambda call, now: next(responses))
    settings = ClientOptions.of(
        api_key="nk_test_key",
        base_url="https://noukai.test/api/v1",
        org=None,
        project=None,
        timeout=30,
        poll_interval=600,
        retry_timeout=300,
        not_found_grace=60,
        recovery_timeout=60,
        max_polls_per_second=50,
        max_concurrent_submissions=1,
        max_response_bytes=1000,
    )
    status = clock.run(Poller(FLOW, "job-1", settings, PollRateLimiter(50), clock).effects())
    assert status.finished


def test_a_cancel_goes_on_until_the_race_is_over() -> None:
    """A job that becomes visible in the last second of the race is cancelled."""
    clock = Turned(lambda call, now: MISSING if now < 59 else HttpResponse(200, {}, b"{}"))
    clock.run(send_with_retries(cancel(FLOW, "job-1"), clock, race_ends=60))
    assert 59 <= clock.now <= 60


def test_a_fault_late_in_the_race_does_not_stop_a_cancel() -> None:
    """The retry window starts at the last response, and a 404 inside the race is one."""
    responses = iter([MISSING] * 4 + [FAULT, HttpResponse(200, {}, b"{}")])
    clock = Turned(lambda call, now: next(responses))
    clock.run(send_with_retries(cancel(FLOW, "job-1"), clock, race_ends=60))
    assert len(clock.sent) == 6
