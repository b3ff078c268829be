"""What a process remembers of its submissions, within bounds and across a fork."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from noukai_core import Noukai, Submission
from noukai_core._engine import submission_registry
from noukai_core._engine.submission_registry import SubmissionKey, SubmissionRegistry
from noukai_core._validation import FlowPath
from tests.core.scripted_server import ScriptedServer, accepted

FLOW = FlowPath("acme", "spelling", "grade-3")


def new() -> SubmissionKey:
    return FLOW, Submission.new().id


def submitted(registry: SubmissionRegistry, of: SubmissionKey) -> None:
    """Let a call submit a job."""
    state = registry.begin(of)
    assert state is not None
    state.possibly_sent_at = datetime.now(UTC)
    state.job_id = f"job of {of[1]}"
    registry.end(of)


def job_of(registry: SubmissionRegistry, of: SubmissionKey) -> str | None:
    state = registry.begin(of)
    assert state is not None
    registry.end(of)
    return state.job_id


def test_the_oldest_are_forgotten_first() -> None:
    """A process that submits for ever remembers its latest submissions, and uses no more memory."""
    registry = SubmissionRegistry(max_remembered=2)
    oldest, middle, latest = new(), new(), new()
    for of in (oldest, middle, latest):
        submitted(registry, of)
    assert job_of(registry, latest) == f"job of {latest[1]}"
    assert job_of(registry, middle) == f"job of {middle[1]}"
    assert job_of(registry, oldest) is None


def test_a_submission_on_its_way_is_not_forgotten() -> None:
    """A submission that a call has just now is kept, however many others end meanwhile."""
    registry = SubmissionRegistry(max_remembered=1)
    busy = new()
    assert registry.begin(busy) is not None
    for _ in range(3):
        submitted(registry, new())
    assert registry.begin(busy) is None
    registry.end(busy)


def test_a_fork_during_a_submission() -> None:
    """A child process does not wait for calls of its parent's threads, of which it has none."""
    registry = submission_registry.shared_registry("https://noukai.test", "nk_test_fork")
    busy = new()
    assert registry.begin(busy) is not None
    registry._lock.acquire()
    submission_registry._after_fork()
    assert registry.begin(busy) is not None
    registry.end(busy)


def test_one_with_an_unknown_outcome_is_forgotten_last() -> None:
    """What a caller has to pass again to learn whether there is a job outlives what has one."""
    registry = SubmissionRegistry(max_remembered=2)
    unknown = new()
    state = registry.begin(unknown)
    assert state is not None
    state.possibly_sent_at = datetime.now(UTC)
    registry.end(unknown)
    for _ in range(3):
        submitted(registry, new())
    state = registry.begin(unknown)
    assert state is not None
    assert state.possibly_sent_at is not None


@pytest.mark.parametrize("others", ["calls", "batch"])
def test_only_what_may_be_passed_again_is_remembered(
    server: ScriptedServer, key: str, monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    """A submission that the caller passed is not forgotten for those of batches and of the client's own."""
    registry = submission_registry.shared_registry("https://noukai.test", key)
    monkeypatch.setattr(registry, "_max_remembered", 3)
    server.on("submit", *[accepted(f"job-{number}") for number in range(20)])
    with Noukai(key, base_url="https://noukai.test", transport=server.transport) as client:
        flow, kept = client.flow("acme/spelling/grade-3"), Submission.new()
        first = flow.job("x", submission=kept)
        if others == "calls":
            for _ in range(5):
                flow.job("y")
        else:
            assert list(flow.jobs(5 * ["z"], detach=True)) == []
        assert flow.job("x", submission=kept).id == first.id
    assert len(server.made("submit")) == 6


def test_what_has_just_ended_is_not_forgotten_for_what_is_unknown() -> None:
    """A submission whose job became known just now is remembered, however many outcomes are unknown."""
    registry = SubmissionRegistry(max_remembered=2)
    for number in range(3):
        key = (FLOW, str(number))
        state = registry.begin(key)
        assert state is not None
        if number < 2:
            state.possibly_sent_at = datetime.now(UTC)
        else:
            state.job_id = "job-1"
        registry.end(key)
    again = registry.begin(key)
    assert again is not None
    assert again.job_id == "job-1"


def test_an_unknown_submission_is_kept_while_others_are_busy() -> None:
    """What has just ended with an unknown outcome is not forgotten because of calls that have not ended."""
    registry = SubmissionRegistry(max_remembered=2)
    first, *others = (new() for _ in range(4))
    state = registry.begin(first)
    assert state is not None
    for other in others:
        registry.begin(other)
    state.possibly_sent_at = datetime.now(UTC)
    registry.end(first)
    assert registry.begin(first) is state
