"""Waiting beside gateways that send their own 404, and in a crowd whose members leave, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from bisect import bisect_left
from typing import Any

import pytest

from noukai_core import (
    AsyncNoukai,
    CancelUnsupportedError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    JobState,
    JobStatus,
    JobTimeoutError,
    Noukai,
    TransientError,
)
from noukai_core._engine import schedule
from tests.core.raw_service import COMPLETED, FOREIGN_404, NO_JOB, RUNNING, RawService, http
from tests.core.scripted_server import FLOW


@pytest.fixture
def service(service: RawService) -> RawService:
    """A service whose job runs until the test says otherwise."""
    return service.on("poll", RUNNING)


@pytest.fixture
def client(client: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of that service with short pauses, and a short retry window."""
    monkeypatch.setattr(schedule, "SHORT_RETRY_WINDOW", 0.1)
    return client


@pytest.mark.parametrize("gateway", FOREIGN_404)
def test_a_gateways_404_ends_no_wait(client: Any, service: RawService, gateway: str) -> None:
    """A 404 that is not the service's own is retried, and the result is not lost."""
    service.on("poll", RUNNING, FOREIGN_404[gateway], COMPLETED)
    assert client.flow(FLOW).attach("job-1").wait(timeout_ms=60_000).output == "done"


@pytest.mark.parametrize("operation", ["status", "cancel", "trace"])
@pytest.mark.parametrize("gateway", FOREIGN_404)
def test_a_gateways_404_says_nothing_about_a_job(
    client: Any, service: RawService, gateway: str, operation: str
) -> None:
    """Calls about a job end with a transient error, and never with one about the job."""
    page = FOREIGN_404[gateway]
    service.on("poll", page).on("cancel", page).on("trace", page)
    with pytest.raises(TransientError, match="404") as caught:
        getattr(client.flow(FLOW).attach("job-1"), operation)()
    assert caught.value.job_id == "job-1"


@pytest.mark.parametrize("operation", ["status", "cancel", "trace", "wait"])
def test_the_services_own_404_is_believed(client: Any, service: RawService, operation: str) -> None:
    """A job that the service itself does not know is not found, at once."""
    service.on("poll", NO_JOB).on("cancel", NO_JOB).on("trace", NO_JOB)
    with pytest.raises(JobNotFoundError):
        getattr(client.flow(FLOW).attach("job-1"), operation)()
    assert len(service.requests) == 1


@pytest.mark.parametrize("status", [405, 501])
def test_a_server_without_a_cancel_route_is_recognised(client: Any, service: RawService, status: int) -> None:
    """A server that does not know the method says so in a form that no gateway's 404 has."""
    service.on("cancel", http(status, {"detail": "Method Not Allowed"}))
    with pytest.raises(CancelUnsupportedError):
        client.flow(FLOW).attach("job-1").cancel()


@pytest.mark.parametrize(
    ("word", "error"), [("succeeded", None), ("error", JobFailedError), ("canceled", JobCancelledError)]
)
def test_other_words_for_an_end_end_a_wait(
    client: Any, service: RawService, word: str, error: type[Exception] | None
) -> None:
    """A server that says `succeeded`, `error` or `canceled` is understood."""
    service.on("poll", http(200, {"executionId": "job-1", "status": word, "result": "done"}))
    job = client.flow(FLOW).attach("job-1")
    if error is None:
        assert job.wait(timeout_ms=60_000).output == "done"
    else:
        with pytest.raises(error):
            job.wait(timeout_ms=60_000)


def most_per_second(times: list[float]) -> int:
    """Count the requests in the busiest second; a busy machine moves them by a tenth of one."""
    times = sorted(times)
    return max(bisect_left(times, begin + 0.9) - index for index, begin in enumerate(times))


def test_short_waits_in_threads_stay_within_the_rate_limit(key: str, service: RawService) -> None:
    """Ten threads that wait again and again with a short deadline share the rate limit."""
    ends = time.monotonic() + 3

    def wait_again_and_again(client: Noukai) -> None:
        while time.monotonic() < ends:
            with contextlib.suppress(JobTimeoutError):
                client.flow(FLOW).attach("job-1").wait(timeout_ms=500)

    with Noukai(key, base_url=service.base_url, max_polls_per_second=5) as client:
        threads = [threading.Thread(target=wait_again_and_again, args=(client,)) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most_per_second(service.times) <= 6
        service.on("poll", COMPLETED)
        # Before, the slots that the others had left delayed it by more than twenty seconds.
        assert client.flow(FLOW).attach("job-2").wait(timeout_ms=5_000).output == "done"


async def test_a_crowd_that_leaves_delays_no_later_wait(key: str, service: RawService) -> None:
    """The slots of a thousand waits that were cancelled are free again."""
    async with AsyncNoukai(key, base_url=service.base_url, max_polls_per_second=20) as client:
        flow = client.flow(FLOW)
        waits = [asyncio.ensure_future(flow.attach(f"job-{number}").wait()) for number in range(1_000)]
        await asyncio.to_thread(service.wait_for, "poll")
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        service.on("poll", COMPLETED)
        async with asyncio.timeout(20):  # with those slots still taken, it would be fifty seconds
            assert (await flow.attach("job-x").wait()).output == "done"


async def test_many_waits_with_one_deadline_stay_within_the_rate_limit(key: str, service: RawService) -> None:
    """Two hundred waits that end at the same moment make no storm of last polls."""
    async with AsyncNoukai(key, base_url=service.base_url, max_polls_per_second=10) as client:
        flow = client.flow(FLOW)
        waits = (flow.attach(f"job-{number}").wait(timeout_ms=2_000) for number in range(200))
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
    assert all(isinstance(outcome, JobTimeoutError) for outcome in outcomes)
    assert most_per_second(service.times) <= 10 + 2


def test_an_iteration_that_is_left_gives_its_slot_back(client: Any, service: RawService) -> None:
    """A `watch` that is closed after its first status leaves no slot taken."""
    for number in range(100):
        statuses = client.flow(FLOW).attach(f"job-{number}").watch()
        next(statuses)
        statuses.close()
    service.on("poll", COMPLETED)
    assert client.flow(FLOW).attach("job-x").wait(timeout_ms=10_000).output == "done"


def test_the_progress_of_an_ended_job_is_not_logged(
    client: Any, service: RawService, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose end is known has no line about its progress, and the status keeps it."""
    caplog.set_level("INFO")
    service.on(
        "poll", http(200, {"status": "completed", "result": "done", "progress": {"step": 9, "of": 10}})
    )
    known = JobStatus(id="job-1", state=JobState.COMPLETED)
    job = client.flow(FLOW).attach("job-1", last_status=known)
    assert job.wait(timeout_ms=60_000).output == "done"
    assert "progress" not in caplog.text
    assert job.last_status.progress == {"step": 9, "of": 10}
