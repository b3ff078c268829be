"""Which job a response names: ids in another spelling, and the ids of other jobs, on a real socket."""

from __future__ import annotations

from typing import Any

import pytest

from noukai_core import JobTimeoutError, Noukai
from noukai_core._api.job_ids import canonical_job_id
from tests.core.raw_service import ACCEPTED, COMPLETED, LOST, RUNNING, RawService, http, listed
from tests.core.scripted_server import FLOW, KEY

UUID_ID = "exec-2f1c9a34-5b0e-4c7d-9d55-0a6f0e3b7c11"
SPELLINGS = {
    "without dashes": "exec-2f1c9a345b0e4c7d9d550a6f0e3b7c11",
    "in upper case": UUID_ID.upper(),
    "both": "EXEC-2F1C9A345B0E4C7D9D550A6F0E3B7C11",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_job_is_known_by_its_id_in_another_spelling(
    client: Any, service: RawService, spelling: str
) -> None:
    """A poll that writes the UUID of the job in another way is about this job, and its result is returned."""
    value = {"executionId": SPELLINGS[spelling], "status": "completed", "result": "done"}
    service.on("poll", http(200, value))
    assert client.flow(FLOW).attach(UUID_ID).wait(timeout_ms=60_000).output == "done"


@pytest.mark.parametrize("other", ["job-11", "job-1-2", "job--1-1"])
def test_dashes_tell_jobs_apart(other: str) -> None:
    """Only the dashes of a UUID make no difference."""
    assert canonical_job_id("job-1-1") != canonical_job_id(other)


def test_the_result_of_a_job_with_another_number_is_not_believed(client: Any, service: RawService) -> None:
    """A response that names another job by a number is not this job's."""
    service.on("poll", RUNNING, http(200, {"executionId": 18, "status": "completed", "result": "wrong"}))
    with pytest.raises(JobTimeoutError):
        client.flow(FLOW).attach("17").wait(timeout_ms=300)
    service.on("poll", http(200, {"executionId": 17, "status": "completed", "result": "done"}))
    assert client.flow(FLOW).attach("17").wait(timeout_ms=60_000).output == "done"


def test_the_job_of_another_input_is_not_taken_for_the_own(service: RawService) -> None:
    """An input of a batch that receives the response to another one finds its own job, and is sent once."""
    service.on("poll", COMPLETED)
    both = (
        {"executionId": number, "status": "completed", "triggerType": "job"} for number in ("job-1", "job-2")
    )
    service.on("session", listed(*both))
    with Noukai(KEY, base_url=service.base_url, poll_interval=0.01) as client:
        outcomes = list(client.flow(FLOW).jobs(["one", "two"], max_concurrency=1, in_order=True))
    assert [outcome.job_id for outcome in outcomes] == ["job-1", "job-2"]
    assert service.count("submit") == 2


def test_a_list_that_leaves_out_known_jobs_proves_nothing(service: RawService) -> None:
    """A session that does not list the batch's earlier jobs does not prove that a later one was not made."""
    service.on("submit", ACCEPTED, LOST).on("poll", COMPLETED).on("session", listed())
    with Noukai(KEY, base_url=service.base_url, recovery_timeout=0.3, poll_interval=0.01) as client:
        outcomes = list(client.flow(FLOW).jobs(["one", "two"], max_concurrency=1, in_order=True))
    assert [outcome.state for outcome in outcomes] == ["completed", "unknown"]
    assert service.count("submit") == 2
