"""The retry policy's decision about each error."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

import noukai_core as core
from noukai_airflow.exceptions import (
    NoukaiJobFailedException,
    NoukaiPermanentException,
    NoukaiRateLimitException,
    NoukaiTransientException,
)

policies = pytest.importorskip("noukai_airflow.retry_policy", exc_type=ImportError)

RESCHEDULES = hasattr(policies.RetryDecision, "reschedule")


def decide(error: BaseException, **arguments: float | timedelta) -> tuple[str, timedelta | None]:
    decision = policies.NoukaiRetryPolicy(**arguments).evaluate(error, try_number=1, max_tries=3)
    return decision.action.value, decision.retry_delay


@pytest.mark.parametrize(
    "error",
    [
        NoukaiRateLimitException("too many requests", retry_after=120),
        core.RateLimitError("too many requests", status_code=429, retry_after=120),
    ],
)
def test_a_rate_limit_waits_as_long_as_the_server_says(error: Exception) -> None:
    """The delay is the server's own, and since Airflow 3.4 it costs no retry."""
    action = "reschedule" if RESCHEDULES else "retry"
    assert decide(error) == (action, timedelta(seconds=120))


@pytest.mark.skipif(not RESCHEDULES, reason="before Airflow 3.4, a policy cannot reschedule")
def test_a_rate_limit_is_rescheduled_for_a_bounded_time() -> None:
    """A rate limit without a delay is waited for with the task's own, up to the policy's limit."""
    policy = policies.NoukaiRetryPolicy(reschedule_timeout=timedelta(hours=2))
    decision = policy.evaluate(NoukaiRateLimitException("too many requests"), try_number=1, max_tries=0)
    assert (decision.retry_delay, decision.reschedule_timeout) == (None, timedelta(hours=2))


def test_the_delay_has_an_upper_limit() -> None:
    """A server cannot delay a task for longer than the policy allows."""
    error = NoukaiTransientException("too many requests", retry_after=86_400)
    assert decide(error, longest_delay=timedelta(minutes=10)) == ("retry", timedelta(minutes=10))


@pytest.mark.parametrize(
    "error",
    [
        NoukaiPermanentException("no credits"),
        core.AuthenticationError("wrong key", status_code=401),
        core.InsufficientCreditsError("no credits", status_code=402),
        core.InvalidInputError("message is missing"),
        core.JobCancelledError("cancelled", job_id="job-1"),
    ],
)
def test_what_cannot_succeed_is_not_retried(error: Exception) -> None:
    """Permanent errors, invalid input and a cancelled job fail the task at once."""
    assert decide(error)[0] == "fail"


@pytest.mark.parametrize(
    "error",
    [
        NoukaiJobFailedException("the model gave up"),
        core.TransientError("no response"),
        ValueError("something else"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_left_to_airflow(error: BaseException) -> None:
    """Other errors are retried according to the task's own settings."""
    assert decide(error)[0] == "default"


def test_it_can_be_serialized() -> None:
    """A stored policy equals the original."""
    policy = policies.NoukaiRetryPolicy(longest_delay=timedelta(seconds=90))
    assert policies.NoukaiRetryPolicy.deserialize(policy.serialize()).longest_delay == timedelta(seconds=90)


def test_durations_in_seconds() -> None:
    """A duration may be a number of seconds, and the stored policy is that of the same timedelta."""
    policy = policies.NoukaiRetryPolicy(longest_delay=60, reschedule_timeout=7200)
    same = policies.NoukaiRetryPolicy(timedelta(minutes=1), timedelta(hours=2))
    assert policy.serialize() == same.serialize()
    assert json.loads(json.dumps(policy.serialize())) == policy.serialize()
    error = NoukaiTransientException("unavailable", retry_after=3600)
    assert decide(error, longest_delay=60) == ("retry", timedelta(seconds=60))


@pytest.mark.parametrize("argument", ["longest_delay", "reschedule_timeout"])
@pytest.mark.parametrize("value", [None, "60", -1, timedelta(seconds=-1), True])
def test_what_is_no_duration(argument: str, value: Any) -> None:
    """A duration that is none is refused when the DAG is parsed."""
    with pytest.raises(ValueError, match=f"{argument} is"):
        policies.NoukaiRetryPolicy(**{argument: value})


@pytest.mark.parametrize("asked", [1e18, float("inf")])
def test_a_delay_beyond_all_bounds(asked: float) -> None:
    """However long the server asks to wait, the delay is the upper limit."""
    error = NoukaiTransientException("unavailable", retry_after=asked)
    assert decide(error) == ("retry", timedelta(hours=1))
