"""A wait that a busy caller kept from polling polls once more, however close to its deadline that was."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from noukai_core import JobStatus, JobTimeoutError, Noukai
from noukai_core._engine.effects import Emit, Send, Sleep
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._engine.wait import Poller, Stalls
from noukai_core._options import ClientOptions
from noukai_core.models import JobState
from tests.core.scripted_server import FLOW

if TYPE_CHECKING:
    from collections.abc import Generator


KEY = "nk_test_stalls_0123456789abcdef0123456789abcdef"
RUNNING = JobStatus(id="job-1", state=JobState.RUNNING)
ENDED = JobStatus(id="job-1", state=JobState.COMPLETED)


class Waiting:
    """A wait of ten seconds on a virtual clock.

    Args:
        polls_per_second: The rate limit; the second slot of the usual one comes after 100 seconds.
    """

    def __init__(self, polls_per_second: float = 0.01) -> None:
        self.now = 0.0
        self.stalls = Stalls()
        settings = ClientOptions.of(api_key=KEY)
        self.effects: Generator[Any, Any, JobStatus] = Poller(
            settings.flow_path(FLOW),
            "job-1",
            settings,
            PollRateLimiter(polls_per_second),
            lambda: self.now,
            timeout=10.0,
            stalls=self.stalls,
        ).effects()

    def until_poll(self) -> None:
        """Sleep until the next poll."""
        while not isinstance(effect := next(self.effects), Send):
            if isinstance(effect, Sleep):
                self.now += effect.seconds


def test_a_stall_before_the_deadline() -> None:
    """A wait whose last poll was before a stall polls once more, when it has a slot, and then times out."""
    waiting = Waiting()
    waiting.until_poll()
    waiting.now = 9.9
    waiting.stalls.note(0.0, waiting.now)
    assert isinstance(waiting.effects.send(RUNNING), Emit)
    waiting.until_poll()
    assert waiting.now > 99.0
    with pytest.raises(JobTimeoutError):
        waiting.effects.send(RUNNING)


def test_no_stall() -> None:
    """A wait that nothing kept from polling waits for no slot that comes after its deadline."""
    waiting = Waiting()
    waiting.until_poll()
    waiting.now = 9.9
    waiting.stalls.note(9.5, waiting.now)
    assert isinstance(waiting.effects.send(RUNNING), Emit)
    with pytest.raises(JobTimeoutError):
        waiting.until_poll()


def test_a_job_that_ends_while_its_status_is_shown() -> None:
    """A caller of `watch` that keeps a status beyond the deadline still gets the end of the job."""
    waiting = Waiting(polls_per_second=50)
    waiting.until_poll()
    assert isinstance(waiting.effects.send(RUNNING), Emit)
    waiting.now = 10.5
    waiting.until_poll()
    assert isinstance(waiting.effects.send(ENDED), Emit)
    with pytest.raises(StopIteration):
        next(waiting.effects)


def test_a_slow_body_that_ends_soon_after_the_deadline() -> None:
    """A job of a batch that has ended is not timed out by a body of the loop that took a little too long."""
    both_submitted = threading.Event()
    submitted: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            submitted.append(f"job-{len(submitted)}")
            return httpx.Response(202, json={"executionId": submitted[-1], "status": "started"})
        assert both_submitted.wait(60)
        return httpx.Response(200, json={"status": "completed", "result": 1})

    states: list[str] = []
    transport = httpx.MockTransport(respond)
    # The second job has no slot of the rate limit before its deadline.
    with Noukai(KEY, transport=transport, max_polls_per_second=0.2) as client:
        batch = client.flow(FLOW).jobs(["one", "two"], timeout=2.0)

        def let_respond() -> None:
            while sorted(batch.states.values()) != ["pending", "pending"]:
                time.sleep(0.01)
            both_submitted.set()

        threading.Thread(target=let_respond, daemon=True).start()
        for outcome in batch:
            states.append(outcome.state)
            time.sleep(2.5)
    assert states == ["completed", "completed"]
