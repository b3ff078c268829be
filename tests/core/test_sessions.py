"""The wait for a whole batch by the lists of its sessions, with both clients, on a real socket."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from noukai_core import AuthenticationError, TransientError
from noukai_core._api.parsing import HttpResponse
from noukai_core._engine import schedule
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._engine.sessions import wait_for_sessions
from noukai_core._options import ClientOptions
from tests.core.raw_service import RawService, http, listed
from tests.core.scripted_server import FLOW, KEY
from tests.core.turned_clock import Turned

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient

SESSION = "3b241101-e2bb-4255-8caf-4136c566a962"
ENDED = {"executionId": "job-1", "status": "completed"}
RUNNING = {"executionId": "job-2", "status": "running"}
OVERLOADED = http(503, {"detail": {"code": "OVERLOADED", "message": "no"}})
SLOW_DOWN = http(429, {"detail": {"code": "RATE_LIMITED", "message": "slow down"}}, "Retry-After: 0")


@pytest.fixture
def make_flow(make_client: MakeClient, service: RawService, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a flow of that service, with short pauses."""
    monkeypatch.setattr(schedule, "SHORTEST_PAUSE", 0.01)
    return lambda **options: make_client(base_url=service.base_url, **options).flow(FLOW)


@pytest.mark.parametrize("failure", [OVERLOADED, SLOW_DOWN], ids=["overloaded", "rate limit"])
def test_a_list_that_fails_for_a_moment(failure: bytes, make_flow: Any, service: RawService) -> None:
    """A failed list changes nothing of what is known, and the wait goes on with the next one."""
    service.on(
        "session", failure, listed(ENDED, RUNNING), failure, listed(ENDED, RUNNING | {"status": "failed"})
    )
    rounds: list[int] = []
    left = make_flow().wait_for_sessions({SESSION: 2}, poll_interval=0.01, report=rounds.append)
    assert (left, rounds) == (0, [2, 1, 1, 0])
    assert service.count("session") == 4


def test_a_job_that_is_not_listed(make_flow: Any, service: RawService) -> None:
    """A job that the list does not show counts as one that runs, and few running jobs can end the wait."""
    service.on("session", listed(ENDED))
    assert make_flow().wait_for_sessions({SESSION: 3}, until=2, poll_interval=0.01) == 2


def test_the_steps_of_the_jobs_are_listed(make_flow: Any, service: RawService) -> None:
    """A step of a job is no job: its end ends no wait, and it is neither cancelled nor taken for a job."""
    step = {"executionId": "step-1", "status": "completed", "triggerType": "step"}
    running_step = {"executionId": "step-2", "status": "running", "triggerType": "Step"}
    service.on("session", listed(step, running_step, RUNNING), listed(step, RUNNING | {"status": "failed"}))
    rounds: list[int] = []
    flow = make_flow()
    flow.wait_for_sessions({SESSION: 1}, poll_interval=0.01, report=rounds.append)
    assert rounds == [1, 0]
    service.on("session", listed(step, running_step, RUNNING))
    running, ended = flow.running_in(SESSION)
    assert ([job.id for job in running], ended) == (["job-2"], 0)
    assert flow.jobs_in(SESSION) == {"job-2"}


def test_a_job_that_an_interrupted_submission_made(make_flow: Any, service: RawService) -> None:
    """The end of a job that is none of those that are waited for does not end the wait."""
    unknown = {"executionId": "job-3", "status": "completed"}
    service.on(
        "session",
        listed(ENDED, RUNNING, unknown),
        listed(ENDED, RUNNING | {"status": "completed"}, unknown),
    )
    rounds: list[int] = []
    make_flow().wait_for_sessions({SESSION: 2}, poll_interval=0.01, report=rounds.append)
    assert rounds == [1, 0]


def test_a_wait_that_times_out(make_flow: Any, service: RawService) -> None:
    """At its end the wait returns how many jobs have not ended, and raises nothing."""
    service.on("session", listed(ENDED, RUNNING))
    assert make_flow().wait_for_sessions({SESSION: 2}, timeout=0.1, poll_interval=0.01) == 1


def test_a_list_that_is_refused(make_flow: Any, service: RawService) -> None:
    """A permanent rejection ends the wait at once."""
    service.on("session", http(401, {"detail": {"code": "INVALID_KEY", "message": "no such key"}}))
    with pytest.raises(AuthenticationError):
        make_flow().wait_for_sessions({SESSION: 2}, poll_interval=0.01)
    assert service.count("session") == 1


def test_a_list_that_fails_for_too_long(make_flow: Any, service: RawService) -> None:
    """Transient errors end the wait when no list could be read for the retry window."""
    service.on("session", OVERLOADED)
    for seconds in (0.1, 1, 10):  # in turn, until the machine is quick enough for a second request
        with pytest.raises(TransientError):
            make_flow(retry_timeout=seconds).wait_for_sessions({SESSION: 2}, poll_interval=0.01)
        if service.count("session") > 1:
            break
        service.requests.clear()
    assert service.count("session") > 1


def on_clock(sizes: dict[str, int], clock: Turned, **options: Any) -> Any:
    """Wait on a virtual clock until all jobs of sessions have ended."""
    given: dict[str, Any] = {"until": 0, "age": 0.0, "timeout": None, "poll_interval": None} | options
    return wait_for_sessions(sizes, ClientOptions.of(api_key=KEY), PollRateLimiter(50), clock, **given)


def test_a_server_that_asks_for_a_day_is_not_waited_for() -> None:
    """A long `Retry-After` does not make the wait longer than its retry window."""
    busy = HttpResponse(429, {"retry-after": "86400"}, b"")
    clock = Turned(lambda call, now: busy)
    waiting = on_clock({SESSION: 1}, clock)
    with pytest.raises(TransientError):
        clock.run(waiting)
    assert clock.now == pytest.approx(300)
    assert len(clock.sent) == 2


def test_one_error_after_a_pause_longer_than_the_retry_window() -> None:
    """The retry window begins with the first error, however long ago the last response was."""
    clock = Turned(lambda call, now: HttpResponse(503, {}, b"") if 500 < now < 700 else sessions_at(now))
    waiting = on_clock({SESSION: 1}, clock, poll_interval=600.0)
    assert clock.run(waiting) == 0


def sessions_at(now: float) -> HttpResponse:
    """The list of a session whose job ends after a while."""
    state = "completed" if now > 700 else "running"
    body = {"sessionId": SESSION, "executions": [{"executionId": "job-1", "status": state}]}
    return HttpResponse(200, {}, json.dumps(body).encode())


def test_a_session_whose_list_always_fails() -> None:
    """It neither hides the sessions behind it nor is asked without end, although others can be read."""
    sessions = [f"{SESSION[:-1]}{number}" for number in range(3)]
    asked: list[str] = []

    def respond(call: Any, now: float) -> HttpResponse:
        session = call.path.rpartition("/")[2]
        asked.append(session)
        if session == sessions[1]:
            return HttpResponse(503, {}, b"")
        state = "running" if session == sessions[0] else "completed"
        content = {"sessionId": session, "executions": [{"executionId": session, "status": state}]}
        return HttpResponse(200, {}, json.dumps(content).encode())

    clock, rounds = Turned(respond), list[int]()
    window = ClientOptions.of(api_key=KEY).retry_timeout
    waiting = on_clock(dict.fromkeys(sessions, 1), clock, report=rounds.append)
    with pytest.raises(TransientError):
        clock.run(waiting)
    assert window <= clock.now < window + 120
    assert rounds[1:2] == [2]
    assert asked.count(sessions[1]) < 60
