"""What the simulator found in batches, each over a real socket with responses written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from noukai_core import (
    JobAccepted,
    JobRequest,
    LedgerEntry,
    MemoryLedger,
    Noukai,
    Submission,
    TransientError,
    cancel_job,
)
from noukai_core._api import endpoints
from noukai_core._engine import schedule
from noukai_core._engine.batch_backoff import SubmissionBackoff
from noukai_core._engine.batch_log import EachJobLog
from noukai_core._engine.effects import Send, Sleep, send_with_retries
from noukai_core._engine.submit import SharedSession, submit_request
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath
from noukai_core.batch import SUBMITTED, submission_id_of
from tests.core.raw_service import COMPLETED, NO_JOB, RUNNING, RawService, http, listed
from tests.core.scripted_server import FLOW

BATCH = "3b241101-e2bb-4255-8caf-4136c566a962"
SESSION = "0a0f8a0e-3a39-4d5c-9e0f-6f1f3f1f3c11"
KEY = "nk_test_holes_batch_0123456789abcdef0123456789"
ENDED = http(409, {"detail": {"code": "FINISHED", "message": "it has ended"}})


def accepted(job_id: str) -> bytes:
    """Write the response to a submission."""
    return http(202, {"executionId": job_id, "status": "started"})


def ledger_with(*job_ids: str) -> MemoryLedger:
    """A ledger whose inputs have jobs that run, all in one session."""
    ledger = MemoryLedger()
    for index, job_id in enumerate(job_ids):
        submission = submission_id_of(UUID(BATCH), index, 0)
        ledger.write(
            LedgerEntry(
                index=index, submission_id=submission, session_id=SESSION, job_id=job_id, state=SUBMITTED
            )
        )
    return ledger


def test_a_job_that_is_listed_by_another_id_is_not_replaced(
    service: RawService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is lost is not submitted again while its session lists one that nobody knows."""
    monkeypatch.setattr(schedule, "SHORTEST_PAUSE", 0.01)
    service.on("poll", NO_JOB).on("session", listed({"executionId": "another-id", "status": "running"}))
    with Noukai(KEY, base_url=service.base_url, not_found_grace=0, poll_interval=0.01) as client:
        outcomes = list(client.flow(FLOW).jobs(["one"], ledger=ledger_with("job-1"), batch_id=BATCH))
    assert [outcome.state for outcome in outcomes] == ["unknown"]
    assert service.count("submit") == 0


def test_a_lost_job_is_replaced_although_others_of_its_session_are_listed(
    service: RawService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs of a session that have ended, whose ids a ledger may not have, are not taken for it."""
    monkeypatch.setattr(schedule, "SHORTEST_PAUSE", 0.01)
    ledger = ledger_with("job-1", "job-2")
    ledger.write(replace(ledger.entries[0], job_id=None, kept=True, state="completed"))
    service.on("session", listed({"executionId": "job-1", "status": "completed"}))
    service.on("submit", accepted("job-3")).on("poll", NO_JOB, COMPLETED)
    with Noukai(KEY, base_url=service.base_url, not_found_grace=0, poll_interval=0.01) as client:
        outcomes = list(client.flow(FLOW).jobs(["one", "two"], ledger=ledger, batch_id=BATCH))
    assert [(outcome.index, outcome.job_id) for outcome in outcomes] == [(1, "job-3")]


def test_a_response_with_a_job_that_runs_elsewhere() -> None:
    """A submission whose response names a running job of another session asks for its own."""
    settings = ClientOptions.of(api_key=KEY, base_url="http://127.0.0.1:1")
    request = JobRequest(FLOW, message="hello")
    session = SharedSession(SESSION, (), {"job-1"})
    effects = submit_request(
        request, Submission.new(), settings.flow_path(FLOW), settings, lambda: 0.0, session
    )
    sent = next(effects)
    assert isinstance(sent, Send)
    assert sent.call.submits
    lookup = effects.send(JobAccepted(id="job-1"))
    assert isinstance(lookup, Send)
    assert lookup.call.path == f"seq/sessions/{SESSION}"


def test_a_poll_that_waits_long_for_its_slot_is_repeated_all_the_same() -> None:
    """The seconds for which a poll is repeated do not pass while it waits for a slot of the rate limit."""
    now = 0.0

    def slot() -> Any:
        nonlocal now
        yield Sleep(20.0)
        now += 20.0

    effects = send_with_retries(
        endpoints.status(ClientOptions.of(api_key=KEY).flow_path(FLOW), "job-1"), lambda: now, reach_slot=slot
    )
    assert isinstance(next(effects), Sleep)
    assert isinstance(effects.send(None), Send)
    assert isinstance(effects.send(TransientError("HTTP 502")), Sleep)  # the pause before the next one
    assert isinstance(effects.send(None), Sleep)
    assert isinstance(effects.send(None), Send)
    effects.close()


def test_a_job_that_had_ended_when_its_time_was_over(service: RawService) -> None:
    """A job that had ended before its cancel is no cancelled one, even if a poll still says that it runs."""
    service.on("poll", RUNNING).on("cancel", ENDED)
    ledger = ledger_with("job-1")
    with Noukai(KEY, base_url=service.base_url, poll_interval=0.01) as client:
        flow = client.flow(FLOW)
        options = {"ledger": ledger, "batch_id": BATCH}
        late = list(flow.jobs(["one"], timeout=0.05, cancel_on_timeout=True, **options))
        assert [outcome.state for outcome in late] == ["timed_out"]
        service.on("poll", COMPLETED)
        rerun = list(flow.jobs(["one"], **options))
    assert [(outcome.state, outcome.output) for outcome in rerun] == [("completed", "done")]
    assert service.count("submit") == 0


def test_a_single_job_that_had_ended(service: RawService) -> None:
    """The line about a cancel tells the truth where a poll lags behind."""
    service.on("poll", RUNNING).on("cancel", ENDED)
    with Noukai(KEY, base_url=service.base_url) as client:
        job = client.flow(FLOW).attach("job-1")
        assert cancel_job(job).not_needed == "already ended"
        service.on("cancel", http(202))
        assert cancel_job(job).cancelled


def test_a_batch_that_a_person_ends_when_a_job_had_ended(service: RawService) -> None:
    """A rerun asks how a job ended that had ended before the person's cancel."""
    service.on("poll", RUNNING).on("cancel", ENDED)
    ledger = ledger_with("job-1")
    with Noukai(KEY, base_url=service.base_url, poll_interval=0.01) as client:
        jobs = client.flow(FLOW).jobs(["one"], ledger=ledger, batch_id=BATCH)
        jobs.cancel("a person")
        service.on("poll", COMPLETED)
        rerun = list(client.flow(FLOW).jobs(["one"], ledger=ledger, batch_id=BATCH))
    assert [outcome.state for outcome in rerun] == ["completed"]
    assert service.count("submit") == 0


def test_an_outage_leaves_most_inputs_alone(service: RawService, caplog: pytest.LogCaptureFixture) -> None:
    """While the outcomes of submissions are unknown, others follow ever more slowly, as the log says once."""
    service.on("submit", http(503)).on("session", http(503))
    with (
        Noukai(KEY, base_url=service.base_url, recovery_timeout=1) as client,
        client.flow(FLOW).jobs(map(str, range(1000)), max_concurrency=500) as batch,
    ):
        assert next(batch).state == "unknown"
        assert service.count("submit") < 12  # the twelfth comes after 17 minutes
    assert caplog.text.count(f"Noukai batch of {FLOW}: submitting one by one (") == 1


def test_the_first_response_ends_the_backoff() -> None:
    """After an unknown outcome each submission waits longer than the last, until the service responds."""
    now = 0.0
    flow = FlowPath("acme", "demo", "flow")
    backoff = SubmissionBackoff(flow, lambda: now, EachJobLog(lambda: now))
    assert list(backoff.wait()) == []
    backoff.begin()
    for shortest in (0.9, 1.8, 3.6):
        waiting = backoff.wait()
        pause = next(waiting)
        assert isinstance(pause, Sleep)
        assert pause.seconds >= shortest
        now += pause.seconds
        assert list(waiting) == []
    waiting = backoff.wait()
    next(waiting)
    backoff.end()
    assert list(waiting) == []
    assert list(backoff.wait()) == []
