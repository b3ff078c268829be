"""Submit once: one submission results in one job, or in an error that says what is known."""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import httpx
import pytest

from noukai_core import InvalidInputError, Submission, SubmissionUnknownError, TransientError
from tests.core.scripted_server import (
    FLOW,
    HttpResponse,
    ScriptedServer,
    accepted,
    rejection,
    respond,
    session,
    state,
)

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.core.conftest import MakeClient


NOTHING = respond(404, json={"detail": {"code": "SESSION_NOT_FOUND", "message": "nothing here"}})
EMPTY = session()


AMBIGUOUS: dict[str, HttpResponse | Exception] = {
    "timeout": httpx.ReadTimeout("slow"),
    "write timeout": httpx.WriteTimeout("slow"),
    "reset": httpx.ReadError("reset"),
    "broken pipe": httpx.WriteError("broken"),
    "hung up": httpx.RemoteProtocolError("Server disconnected without sending a response."),
    "408": rejection(408),
    "500": rejection(500, "INTERNAL_ERROR"),
    "502": respond(502, html="<html>Bad Gateway</html>"),
    "503": rejection(503),
    "503 that says when": rejection(503, "OVERLOADED", Retry_After="0.01"),
    "404 of a gateway": respond(404, text="404 page not found"),
    "504": respond(504, text="upstream timed out"),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_a_job_whose_acceptance_was_lost_is_found(
    scripted: MakeClient, server: ScriptedServer, kind: str
) -> None:
    """After an ambiguous outcome, the session of that submission is requested, and nothing is sent again."""
    server.on("submit", AMBIGUOUS[kind]).on("session", session("job-7"))
    assert scripted(recovery_timeout=5).flow(FLOW).job(message="hello").id == "job-7"
    assert len(server.made("submit")) == 1
    requested = server.made("session")[0].url.path
    assert requested == f"/api/v1/seq/sessions/{server.identities.pop()}"


@pytest.mark.parametrize("silent", [NOTHING, EMPTY], ids=["404", "an empty list"])
def test_a_job_that_shows_up_late_in_its_session_is_found(
    scripted: MakeClient, server: ScriptedServer, silent: HttpResponse
) -> None:
    """The entry appears only when a worker has started, so the session is requested for some time."""
    server.on("submit", httpx.ReadTimeout("")).on("session", silent, silent, session("job-7"))
    assert scripted(recovery_timeout=20).flow(FLOW).job(message="hello").id == "job-7"
    assert len(server.made("submit")) == 1


@pytest.mark.parametrize("silent", [NOTHING, EMPTY], ids=["404", "an empty list"])
@pytest.mark.parametrize("kind", ["timeout", "502"])
def test_a_submission_that_made_no_job_is_sent_again(
    scripted: MakeClient, server: ScriptedServer, silent: HttpResponse, kind: str
) -> None:
    """When the session stays empty for the whole time, the same submission goes out again."""
    server.on("submit", AMBIGUOUS[kind], accepted("job-8")).on("session", silent)
    begin = time.monotonic()
    assert scripted(recovery_timeout=0.2).flow(FLOW).job(message="hello").id == "job-8"
    assert time.monotonic() - begin >= 0.2
    first, second = server.made("submit")
    assert (first.url, first.content) == (second.url, second.content)
    assert len(server.identities) == 1


@pytest.mark.parametrize(
    "unanswerable",
    [
        httpx.ConnectError("refused"),
        rejection(500),
        rejection(403, "NO_KEYS_HERE"),
        rejection(405),
        respond(200, json={"a": 1}),
    ],
    ids=["unreachable", "500", "403", "405", "nonsense"],
)
def test_an_unknown_outcome_names_the_submission_id(
    scripted: MakeClient, server: ScriptedServer, unanswerable: HttpResponse | Exception
) -> None:
    """If the session cannot be read, the error names the submission, and no second run is paid for."""
    server.on("submit", httpx.ReadTimeout("")).on("session", unanswerable)
    with pytest.raises(SubmissionUnknownError) as caught:
        scripted(recovery_timeout=0.2).flow(FLOW).job(message="hello")
    assert {caught.value.submission.id} == server.identities
    assert caught.value.submission.id in str(caught.value)
    assert caught.value.submission.last_sent_at is not None
    assert len(server.made("submit")) == 1


@pytest.mark.parametrize("status", [401, 403, 405])
def test_a_permanently_unavailable_session_is_requested_once(
    scripted: MakeClient, server: ScriptedServer, status: int
) -> None:
    """If sessions are not accessible with API keys, the error comes at once, not after a minute."""
    server.on("submit", httpx.ReadTimeout("")).on("session", rejection(status))
    with pytest.raises(SubmissionUnknownError, match=str(status)):
        scripted().flow(FLOW).job(message="hello")
    assert len(server.made("session")) == 1


def test_a_later_try_resolves_it(scripted: MakeClient, server: ScriptedServer) -> None:
    """The identity of a submission that stayed unknown finds its job later, with nothing sent again."""
    server.on("submit", httpx.ReadTimeout("")).on("session", rejection(500))
    with pytest.raises(SubmissionUnknownError) as caught:
        scripted(recovery_timeout=0.2).flow(FLOW).job(message="hello")
    server.on("session", session("job-7"))
    assert scripted().flow(FLOW).job(message="hello", submission=caught.value.submission).id == "job-7"
    assert len(server.made("submit")) == 1


def test_a_submission_of_an_earlier_process_is_looked_up_first(local: MakeClient, emulator: Emulator) -> None:
    """With the time of its first try, an identity finds the job that a crashed process submitted."""
    submission = Submission.new()
    first = local().flow(FLOW).job(message="hello", submission=submission)
    again = Submission(submission.id, last_sent_at=datetime.now(UTC))
    found = local().flow(FLOW).job(message="hello", submission=again)
    assert found.id == first.id
    assert len(emulator.control.jobs()) == 1
    assert emulator.control.counts()["submit"] == 1


def test_a_submission_that_never_arrived_is_sent_by_the_later_try(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """When the session of an earlier try stays empty, the job is submitted, under the same identity."""
    server.on("session", NOTHING)
    old = Submission(Submission.new().id, last_sent_at=datetime.now(UTC) - timedelta(hours=1))
    assert scripted(recovery_timeout=0.2).flow(FLOW).job(message="hello", submission=old).id == "job-1"
    assert len(server.made("session")) > 1
    assert len(server.made("submit")) == 1
    assert server.identities == {old.id}


def test_a_fresh_submission_id_costs_no_question(scripted: MakeClient, server: ScriptedServer) -> None:
    """A submission that was never sent is sent at once, under the identity that the caller stored before."""
    submission = Submission.new()
    scripted().flow(FLOW).job(message="hello", submission=submission)
    assert [request.method for request in server.requests] == ["POST"]
    assert server.identities == {str(UUID(submission.id))}


def test_the_poll_up_can_be_turned_off(scripted: MakeClient, server: ScriptedServer) -> None:
    """Without the lookup, an ambiguous outcome is an error at once: no lookup, no second submission."""
    server.on("submit", httpx.ReadTimeout("")).on("session", session("job-7"))
    with pytest.raises(SubmissionUnknownError):
        scripted(recovery_timeout=0).flow(FLOW).job(message="hello")
    assert [request.method for request in server.requests] == ["POST"]


def test_a_session_of_the_users_own_is_never_taken_for_an_submission_id(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """A user's session may group many jobs, so it is sent as given and proves nothing about this one."""
    own = Submission.new().id
    server.on("submit", httpx.ReadTimeout("")).on("session", session("somebody-elses"))
    with pytest.raises(SubmissionUnknownError):
        scripted().flow(FLOW).job(message="hello", session_id=own)
    (sent,) = server.requests
    assert sent.headers["X-Session-Id"] == own
    assert UUID(sent.headers["Idempotency-Key"]) != UUID(own)


def test_an_submission_id_travels_beside_a_session_of_the_users_own(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """With both given, the session is the user's and the identity is the idempotency key."""
    own, submission = Submission.new().id, Submission.new()
    scripted().flow(FLOW).job(message="hello", session_id=own, submission=submission)
    assert server.requests[0].headers["X-Session-Id"] == own
    assert server.requests[0].headers["Idempotency-Key"] == submission.id


def test_a_doubtful_submission_in_a_session_of_the_users_own_sends_nothing(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """What an earlier try may have sent cannot be determined there, so nothing is sent again."""
    submission = Submission(Submission.new().id, last_sent_at=datetime.now(UTC))
    with pytest.raises(SubmissionUnknownError):
        scripted().flow(FLOW).job(message="hello", session_id=Submission.new().id, submission=submission)
    assert server.requests == []


def test_a_submission_that_is_still_being_processed_is_looked_up(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """409 to an idempotency key means that the first request is not through yet: its job is found."""
    server.on("submit", rejection(409)).on("session", EMPTY, session("job-7"))
    assert scripted(recovery_timeout=5).flow(FLOW).job(message="hello").id == "job-7"
    assert len(server.made("submit")) == 1


def test_a_step_of_the_job_is_not_taken_for_the_job(scripted: MakeClient, server: ScriptedServer) -> None:
    """Of what a session lists, only an execution that was submitted as a job is one."""
    entries = [
        {"executionId": "step-1", "status": "running", "triggerType": "step"},
        {"executionId": "job-7", "status": "running", "triggerType": "job"},
    ]
    server.on("submit", httpx.ReadTimeout("")).on(
        "session", respond(json={"sessionId": "x", "executions": entries})
    )
    assert scripted().flow(FLOW).job(message="hello").id == "job-7"


@pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
def test_a_dropped_connection_ends_in_one_job(local: MakeClient, emulator: Emulator, kind: str) -> None:
    """Whether the connection broke before or after the job was made, there is one job."""
    emulator.control.script("grade-3", result="x", after_polls=1)
    emulator.control.fault(kind, on="submit", times=1)
    job = local(recovery_timeout=0.5).flow(FLOW).job(message="hello")
    (made,) = emulator.control.jobs()
    assert made["id"] == job.id
    assert job.wait(timeout_ms=20_000).output == "x"


def test_a_server_error_without_a_job_ends_in_one_job(local: MakeClient, emulator: Emulator) -> None:
    """A 500 says nothing about the job; what counts is what the session contains."""
    emulator.control.fault("status", on="submit", status=500, times=1)
    job = local(recovery_timeout=0.5).flow(FLOW).job(message="hello")
    assert [made["id"] for made in emulator.control.jobs()] == [job.id]


def test_a_doubt_is_not_forgotten_over_a_refused_connection(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """A timeout followed by a server that is gone stays unknown: the first request may have made the job."""
    server.on("submit", httpx.ReadTimeout(""), httpx.ConnectError("refused")).on(
        "session", httpx.ConnectError("refused")
    )
    with pytest.raises(SubmissionUnknownError):
        scripted(recovery_timeout=0.4, retry_timeout=0.4).flow(FLOW).job(message="hello")
    assert len(server.made("submit")) == 1


def test_a_submission_that_is_lost_again_and_again_ends(scripted: MakeClient, server: ScriptedServer) -> None:
    """A server that loses every submission and knows of no job is an error after a few tries."""
    server.on("submit", rejection(500)).on("session", NOTHING).on("poll", state("running"))
    with pytest.raises(TransientError) as caught:
        scripted(recovery_timeout=0.1).flow(FLOW).job(message="hello")
    assert caught.value.status_code == 500
    assert 2 <= len(server.made("submit")) <= 5
    assert len(server.identities) == 1


def test_a_job_submitted_by_a_later_try_is_as_young_as_it_is(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """A job is not considered as old as its submission id, so its first 404s are still retried."""
    server.on("session", NOTHING).on("poll", rejection(404, "JOB_NOT_FOUND"), state("completed", result="x"))
    old = Submission(Submission.new().id, last_sent_at=datetime.now(UTC) - timedelta(hours=1))
    job = scripted(recovery_timeout=0.2).flow(FLOW).job(message="hello", submission=old)
    assert job.wait(timeout_ms=20_000).output == "x"
    assert datetime.now(UTC) - job.submitted_at < timedelta(minutes=5)


def test_without_the_poll_up_nobody_is_sent_in_circles(scripted: MakeClient, server: ScriptedServer) -> None:
    """With the lookup disabled, the error does not recommend sending the same submission again."""
    server.on("submit", httpx.ReadTimeout(""))
    with pytest.raises(SubmissionUnknownError, match="only when there is none") as caught:
        scripted(recovery_timeout=0).flow(FLOW).job(message="hello")
    assert "the server is requested first" not in str(caught.value)


def test_a_broken_tls_connection_is_an_unclear_end(scripted: MakeClient, server: ScriptedServer) -> None:
    """A TLS error during a submission is treated like a reset: the job is looked up."""
    server.on("submit", ssl.SSLError("decryption failed")).on("session", session("job-7"))
    assert scripted(recovery_timeout=5).flow(FLOW).job(message="hello").id == "job-7"
    assert len(server.made("submit")) == 1


def test_a_submission_with_a_wrong_id_is_named() -> None:
    """The message about a wrong identity does not name the session id, which was not given."""
    with pytest.raises(InvalidInputError, match="the id of a submission is 'x'"):
        Submission("x")
