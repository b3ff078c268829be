"""One submission, one job: against servers, gateways and callers that do not play along, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from noukai_core import (
    APIError,
    AsyncNoukai,
    ClientClosedError,
    Noukai,
    Submission,
    SubmissionUnknownError,
)
from noukai_core._engine import schedule
from tests.core.raw_service import (
    ACCEPTED,
    FOREIGN_404,
    LOST,
    NO_SESSION,
    RawService,
    http,
    listed,
)
from tests.core.scripted_server import FLOW
from tests.fuzz.raw_server import ServerAction

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient

ODD_ENTRIES: dict[str, dict[str, Any]] = {
    "a renamed id": {"runId": "job-7", "status": "running", "triggerType": "job"},
    "no id": {"executionId": None, "status": "running", "triggerType": "job"},
    "an id with a slash": {"executionId": "acme/job-7", "status": "running", "triggerType": "job"},
    "another flow": {"executionId": "job-7", "slug": "grade-4", "triggerType": "job"},
}
READABLE_ENTRIES: dict[str, dict[str, Any]] = {
    "upper case": {"executionId": "job-7", "status": "RUNNING", "triggerType": "JOB"},
    "an unknown kind": {"executionId": "job-7", "status": "running", "triggerType": "api"},
    "a kind that is a number": {"executionId": "job-7", "status": "running", "triggerType": 2},
    "a full path": {"executionId": "job-7", "slug": "acme/spelling/grade-3", "triggerType": "job"},
    "a slug in upper case": {"executionId": "job-7", "slug": "GRADE-3", "triggerType": "job"},
}
NO_ID = http(202, {"status": "started"})


@pytest.fixture
def patient_client(make_client: MakeClient, service: RawService, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same with a long recovery window, for a job that the service lists in the end."""
    monkeypatch.setattr(schedule, "SHORTEST_PAUSE", 0.01)
    return make_client(base_url=service.base_url, recovery_timeout=60.0, poll_interval=0.01)


@pytest.mark.parametrize("entry", ODD_ENTRIES)
@pytest.mark.parametrize("response", [LOST, NO_ID], ids=["lost", "without an id"])
def test_an_entry_that_cannot_be_read_is_never_taken_for_no_job(
    client: Any, service: RawService, response: Any, entry: str
) -> None:
    """An execution in the session that may be the job leaves it unknown, and nothing is sent again."""
    service.on("submit", response, ACCEPTED).on("session", listed(ODD_ENTRIES[entry]))
    with pytest.raises(SubmissionUnknownError):
        client.flow(FLOW).job("hello")
    assert service.count("submit") == 1


@pytest.mark.parametrize("entry", READABLE_ENTRIES)
def test_an_entry_in_other_words_is_the_job(patient_client: Any, service: RawService, entry: str) -> None:
    """The session belongs to the submission, so its execution is the job, however the server spells it."""
    other = {"executionId": "step-1", "status": "running", "triggerType": "step"}
    service.on("submit", LOST, ACCEPTED).on("session", listed(other, READABLE_ENTRIES[entry]))
    assert patient_client.flow(FLOW).job("hello").id == "job-7"
    assert service.count("submit") == 1


@pytest.mark.parametrize("entry", ODD_ENTRIES)
def test_find_never_says_that_there_is_none_when_there_may_be_one(
    client: Any, service: RawService, entry: str
) -> None:
    """An execution that cannot be read is an error of `find`, and not `None`."""
    service.on("session", listed(ODD_ENTRIES[entry]))
    with pytest.raises(SubmissionUnknownError):
        client.flow(FLOW).find(Submission.new())


@pytest.mark.parametrize("gateway", FOREIGN_404)
def test_a_gateways_404_proves_no_absence(client: Any, service: RawService, gateway: str) -> None:
    """Only the service's own 404 says that a session holds no job."""
    service.on("submit", LOST, ACCEPTED).on("session", FOREIGN_404[gateway])
    with pytest.raises(SubmissionUnknownError):
        client.flow(FLOW).job("hello")
    assert service.count("submit") == 1


@pytest.mark.parametrize("gateway", FOREIGN_404)
def test_a_gateways_404_in_place_of_an_acceptance_loses_no_job(
    patient_client: Any, service: RawService, gateway: str
) -> None:
    """A 404 page in place of the response to a submission does not say that there is no such flow."""
    service.on("submit", FOREIGN_404[gateway]).on("session", listed({"executionId": "job-7"}))
    assert patient_client.flow(FLOW).job("hello").id == "job-7"
    assert service.count("submit") == 1


def test_the_services_own_404_proves_absence_after_the_recovery_window(
    client: Any, service: RawService
) -> None:
    """When the service itself knows of no job after the recovery window, the submission is sent again."""
    service.on("submit", LOST, ACCEPTED)
    assert client.flow(FLOW).job("hello").id == "job-1"
    assert service.requests[0] == service.requests[-1] == "submit"
    assert service.count("session") > 1


@pytest.mark.parametrize("body", [b"busy", {"detail": {"code": "OVERLOADED", "message": "no"}}], ids=str)
def test_a_503_that_took_effect_makes_one_job(patient_client: Any, service: RawService, body: object) -> None:
    """After a 503 with `Retry-After` the session is asked before anything is sent again."""
    service.on("submit", http(503, body, "Retry-After: 0"), ACCEPTED)
    service.on("session", NO_SESSION, listed({"executionId": "job-7"}))
    assert patient_client.flow(FLOW).job("hello").id == "job-7"
    assert service.count("submit") == 1


@pytest.mark.parametrize("age", [0.0, 3600.0, -3600.0])
def test_the_age_of_an_earlier_try_shortens_no_window(
    patient_client: Any, service: RawService, age: float
) -> None:
    """A request of an earlier process may have waited for its turn for an hour, or its clock may be wrong."""
    service.on("session", NO_SESSION, NO_SESSION, listed({"executionId": "job-7"}))
    earlier = Submission(Submission.new().id, last_sent_at=datetime.now(UTC) - timedelta(seconds=age))
    assert patient_client.flow(FLOW).job("hello", submission=earlier).id == "job-7"
    assert service.count("submit") == 0


def test_a_submission_that_succeeded_is_not_sent_again(client: Any, service: RawService) -> None:
    """Passing the same submission again gives the same job."""
    submission = Submission.new()
    first = client.flow(FLOW).job("hello", submission=submission)
    second = client.flow(FLOW).job("hello", submission=submission)
    assert first.id == second.id == "job-1"
    assert service.count("submit") == 1


def test_a_submission_that_was_rejected_can_be_sent_again(client: Any, service: RawService) -> None:
    """A submission that surely made no job is sent at once when it is passed again."""
    service.on("submit", http(402, {"detail": {"code": "CREDITS_EXHAUSTED"}}), ACCEPTED)
    submission = Submission.new()
    with pytest.raises(APIError):
        client.flow(FLOW).job("hello", submission=submission)
    assert client.flow(FLOW).job("hello", submission=submission).id == "job-1"
    assert service.requests == ["submit", "submit"]


async def test_a_submission_that_was_interrupted_is_asked_for_first(
    key: str, service: RawService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `asyncio.wait_for` has interrupted a submission, passing it again finds its job."""
    monkeypatch.setattr(schedule, "SHORTEST_PAUSE", 0.01)
    service.on("submit", lambda: (), ACCEPTED).on("session", listed({"executionId": "job-7"}))
    submission = Submission.new()
    async with AsyncNoukai(key, base_url=service.base_url) as client:
        sending = asyncio.ensure_future(client.flow(FLOW).job("hello", submission=submission))
        await asyncio.to_thread(service.wait_for, "submit")
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
    async with AsyncNoukai(key, base_url=service.base_url) as other:
        assert (await other.flow(FLOW).job("hello", submission=submission)).id == "job-7"
    assert service.count("submit") == 1


async def test_the_same_submission_at_the_same_time_makes_one_job(key: str, service: RawService) -> None:
    """Ten tasks that pass one submission at the same time get one job."""
    submission = Submission.new()
    async with AsyncNoukai(key, base_url=service.base_url) as client:
        flow = client.flow(FLOW)
        jobs = await asyncio.gather(*(flow.job("hello", submission=submission) for _ in range(10)))
    assert {job.id for job in jobs} == {"job-1"}
    assert service.count("submit") == 1


def test_the_same_submission_in_two_threads_makes_one_job(key: str, service: RawService) -> None:
    """Two threads, each with a client, that pass one submission get one job."""
    submission, found = Submission.new(), []

    def submit() -> None:
        with Noukai(key, base_url=service.base_url) as client:
            found.append(client.flow(FLOW).job("hello", submission=submission).id)

    threads = [threading.Thread(target=submit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["job-1", "job-1"]
    assert service.count("submit") == 1


def _silent_until(closed: threading.Event) -> Any:
    def respond() -> Iterator[bytes | ServerAction]:
        closed.wait(60)
        yield ServerAction.RESET

    return respond


def test_closing_the_client_during_a_submission_leaves_it_unknown(key: str, service: RawService) -> None:
    """A submission on its way when its client is closed may have made a job, and the error says so."""
    closed = threading.Event()
    service.on("submit", _silent_until(closed))
    client = Noukai(key, base_url=service.base_url)
    errors: list[BaseException] = []

    def submit() -> None:
        try:
            client.flow(FLOW).job("hello")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    service.wait_for("submit")
    client.close()
    closed.set()
    thread.join()
    (error,) = errors
    assert isinstance(error, SubmissionUnknownError)
    assert error.submission.last_sent_at is not None


async def test_closing_an_async_client_during_a_submission_leaves_it_unknown(
    key: str, service: RawService
) -> None:
    """The same for the async client."""
    service.on("submit", lambda: ())
    client = AsyncNoukai(key, base_url=service.base_url)
    sending = asyncio.ensure_future(client.flow(FLOW).job("hello"))
    await asyncio.to_thread(service.wait_for, "submit")
    await client.aclose()
    with pytest.raises(SubmissionUnknownError):
        await sending


def test_a_client_that_was_closed_before_sends_nothing(client: Any, service: RawService) -> None:
    """A submission with a closed client was surely not sent, and can be passed to another one."""
    submission = Submission.new()
    flow = client.flow(FLOW)
    client.close()
    with pytest.raises(ClientClosedError):
        flow.job("hello", submission=submission)
    assert service.requests == []
