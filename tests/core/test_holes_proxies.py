"""One submission, one job: behind caches, proxies and replicas, on a real socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from noukai_core import (
    JobNotFoundError,
    JobState,
    JobStatus,
    JobTimeoutError,
    RateLimitError,
    RedirectError,
    Submission,
    SubmissionUnknownError,
)
from noukai_core._engine import schedule
from tests.core.raw_service import (
    ACCEPTED,
    COMPLETED,
    LOST,
    NO_JOB,
    RUNNING,
    RawService,
    http,
    listed,
)
from tests.core.scripted_server import FLOW

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient

OF_THIS_SESSION: dict[str, Any] = {"executionId": "job-7", "status": "running", "triggerType": "job"}
NOTHING_TO_SEE = {
    "a page with a cursor": http(200, {"executions": [], "nextCursor": "b2Zmc2V0"}),
    "a page that is not the last": http(200, {"executions": [], "pagination": {"has_more": True}}),
    "fewer than there are": http(200, {"executions": [], "total": 1}),
    "a list from a cache": http(200, {"executions": []}, "Age: 7"),
    "a 404 from a cache": http(404, {"detail": {"code": "SESSION_NOT_FOUND"}}, "Age: 7"),
    "the list of another session": http(200, {"sessionId": str(uuid4()), "executions": []}),
}


@pytest.mark.parametrize("status", [302, 303])
def test_a_redirect_may_follow_a_job(client: Any, service: RawService, status: int) -> None:
    """A server that redirects from a form that it has processed has made the job, which is found."""
    service.on("submit", http(status, b"", "Location: /seq/acme/spelling/grade-3/jobs/job-7"), ACCEPTED)
    service.on("session", listed(OF_THIS_SESSION))
    assert client.flow(FLOW).job("hello").id == "job-7"
    assert service.count("submit") == 1


def test_a_login_page_leaves_a_submission_unknown(client: Any, service: RawService) -> None:
    """Where every request is redirected to a login, it is not known whether there is a job."""
    login = http(302, b"", "Location: https://login.test/")
    service.on("submit", login, ACCEPTED).on("session", login)
    with pytest.raises(SubmissionUnknownError, match="302"):
        client.flow(FLOW).job("hello")
    assert service.requests == ["submit", "session"]


@pytest.mark.parametrize("status", [301, 307, 308])
def test_a_redirect_of_the_request_itself_made_no_job(client: Any, service: RawService, status: int) -> None:
    """A server that asks for the same request at another address has processed nothing."""
    service.on("submit", http(status, b"", "Location: https://elsewhere.test/"))
    with pytest.raises(RedirectError):
        client.flow(FLOW).job("hello")
    assert service.requests == ["submit"]


@pytest.mark.parametrize("response", NOTHING_TO_SEE)
def test_a_list_that_is_not_the_whole_proves_nothing(client: Any, service: RawService, response: str) -> None:
    """A list that is cut, old or of another session never leads to a second submission."""
    service.on("submit", LOST, ACCEPTED).on("session", NOTHING_TO_SEE[response])
    with pytest.raises(SubmissionUnknownError):
        client.flow(FLOW).job("hello")
    assert service.count("submit") == 1


def test_a_job_on_the_first_page_is_found(client: Any, service: RawService) -> None:
    """A list that is cut still shows what it shows."""
    page = http(200, {"executions": [OF_THIS_SESSION], "hasMore": True}, "Age: 7")
    service.on("submit", LOST, ACCEPTED).on("session", page)
    assert client.flow(FLOW).job("hello").id == "job-7"
    assert client.flow(FLOW).find(Submission(str(uuid4()))).id == "job-7"


def test_another_jobs_result_is_not_believed(client: Any, service: RawService) -> None:
    """A response that belongs to another job, as of a connection that is out of step, is not this one's."""
    other = http(200, {"executionId": "job-2", "status": "completed", "result": "wrong"})
    service.on("poll", RUNNING, other, COMPLETED)
    assert client.flow(FLOW).attach("job-1").wait(timeout_ms=60_000).output == "done"


def test_a_job_that_a_replica_does_not_know_yet(client: Any, service: RawService) -> None:
    """A job that was known a moment ago is polled on, although a replica that lags behind responds 404."""
    service.on("poll", RUNNING, NO_JOB, COMPLETED)
    assert client.flow(FLOW).attach("job-1").wait(timeout_ms=60_000).output == "done"


def test_a_job_that_another_process_has_seen(client: Any, service: RawService) -> None:
    """A wait that continues another one, as after a deferral, is not ended by a replica that lags behind."""
    service.on("poll", NO_JOB, COMPLETED)
    seen = JobStatus(id="job-1", state=JobState.RUNNING)
    assert client.flow(FLOW).attach("job-1", last_status=seen).wait(timeout_ms=60_000).output == "done"


def test_a_job_that_was_deleted_is_not_found(
    make_client: MakeClient, service: RawService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that stays unknown for the whole grace is not found."""
    monkeypatch.setattr(schedule, "SHORTEST_PAUSE", 0.01)
    client: Any = make_client(base_url=service.base_url, poll_interval=0.01, not_found_grace=0.1)
    service.on("poll", RUNNING, NO_JOB)
    with pytest.raises((JobNotFoundError, JobTimeoutError)) as caught:
        client.flow(FLOW).attach("job-1").wait(timeout_ms=60_000)
    assert isinstance(caught.value, JobNotFoundError)


def test_no_request_is_answered_by_a_cache(client: Any, service: RawService) -> None:
    """Every request asks caches for a response of the server itself."""
    service.on("poll", COMPLETED)
    client.flow(FLOW).attach("job-1").wait(timeout_ms=60_000)
    assert b"cache-control: no-cache" in service.last_request.lower()


def test_retry_after_is_read_by_the_servers_clock(client: Any, service: RawService) -> None:
    """A pause until a date is as long as the server means, however wrong its clock or the client's is."""
    busy = http(429, b"", "Date: Wed, 01 Jan 2020 00:00:00 GMT", "Retry-After: Wed, 01 Jan 2020 00:00:02 GMT")
    service.on("verify", busy)
    with pytest.raises(RateLimitError) as caught:
        client.verify_key()
    assert caught.value.retry_after == 2.0
