"""What a response proves depends on when its request was sent, and not on when a busy caller read it."""

from __future__ import annotations

import pytest

from noukai_core import JobNotFoundError, TransientError
from noukai_core._api import endpoints
from noukai_core._engine.effects import Send, Sleep, send_with_retries
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._engine.wait import Poller
from noukai_core._options import ClientOptions
from tests.core.scripted_server import FLOW

SETTINGS = ClientOptions.of(api_key="nk_test_late_0123456789abcdef0123456789abcdef")
TIMED_OUT = TransientError("504", status_code=504)
UNKNOWN = JobNotFoundError("no such job", status_code=404)


def test_a_poll_from_the_race_that_is_read_after_it() -> None:
    """That a service did not know a job yet is no proof, however long a slow loop keeps the response."""
    now = 0.0
    flow = SETTINGS.flow_path(FLOW)
    effects = Poller(flow, "job-1", SETTINGS, PollRateLimiter(50), lambda: now, submitted_at=0.0).effects()
    while not isinstance(next(effects), Send):
        pass
    now = 100.0
    assert isinstance(effects.send(UNKNOWN), Sleep)
    while not isinstance(next(effects), Send):
        pass
    with pytest.raises(JobNotFoundError):
        effects.send(UNKNOWN)


def test_another_response_from_the_race_that_is_read_after_it() -> None:
    """The same is true of a request that is repeated, such as a cancel."""
    now = 0.0
    call = endpoints.cancel(SETTINGS.flow_path(FLOW), "job-1")
    effects = send_with_retries(call, lambda: now, race_ends=60.0)
    assert isinstance(next(effects), Send)
    now = 100.0
    assert isinstance(effects.send(UNKNOWN), Sleep)
    assert isinstance(next(effects), Send)
    with pytest.raises(JobNotFoundError):
        effects.send(UNKNOWN)


def test_a_gateway_that_gives_up_late() -> None:
    """A cancel that a gateway fails after half a minute is sent once more, and not without end."""
    now = 0.0
    call = endpoints.cancel(SETTINGS.flow_path(FLOW), "job-1")
    effects = send_with_retries(call, lambda: now)
    assert isinstance(next(effects), Send)
    now = 30.0
    assert isinstance(effects.send(TIMED_OUT), Sleep)
    now = 31.0
    assert isinstance(next(effects), Send)
    now = 61.0
    with pytest.raises(TransientError):
        effects.send(TIMED_OUT)
