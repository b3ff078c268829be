"""A deadline that has passed leaves time for one poll, so that a job that ended in time keeps its result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from noukai_airflow import _wait
from noukai_airflow._connection import ConnectionSettings
from noukai_airflow._job_store import JobRecord, JobStore
from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_airflow.exceptions import NoukaiJobTimeoutException
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_airflow.triggers import noukai as triggers
from noukai_airflow.triggers.noukai import NoukaiJobTrigger
from tests.airflow.conftest import KEY, FakeTask, MemoryStore
from tests.core.raw_service import COMPLETED, RUNNING, RawService, http
from tests.fuzz.raw_server import Chunks, ServerAction

FLOW = "acme/demo/flow"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def slowly() -> Chunks:
    """Respond after a moment, for which a timeout of a few milliseconds does not wait."""
    return (ServerAction.PAUSE, COMPLETED)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[RawService]:
    """A service written by hand, and enough time for the last poll of it on any machine."""
    monkeypatch.setattr(_wait, "LAST_POLL_SECONDS", 60.0)
    monkeypatch.setattr(triggers, "LAST_POLL_SECONDS", 60.0)
    with RawService() as service:
        settings = ConnectionSettings.of("noukai_default", password=KEY, host=service.base_url, extra={})

        async def read_connection(hook: NoukaiHook) -> ConnectionSettings:
            return settings

        monkeypatch.setattr(NoukaiHook, "settings", settings)
        monkeypatch.setattr(NoukaiHook, "_read_connection", read_connection)
        yield service


@pytest.fixture
def retry(store: MemoryStore) -> Any:
    """The context of a retry whose job was submitted long ago."""
    record = JobRecord.new(1, "00000000-0000-4000-8000-000000000001", FLOW, try_number=1)
    JobStore(store).write(replace(record, job_id="job-1", last_sent_at=LONG_AGO))
    return {"ti": FakeTask(try_number=2, max_tries=1), "task_state_store": store}


def operator(**arguments: Any) -> NoukaiRunJobOperator:
    return NoukaiRunJobOperator(
        task_id="task", flow=FLOW, message="Hello", retries=1, timeout=10, **arguments
    )


def test_a_retry_after_the_deadline(service: RawService, retry: Any) -> None:
    """A retry that comes after the deadline returns the result of a job that has ended."""
    service.on("poll", RUNNING, slowly)
    assert operator().execute(retry) == "done"
    assert service.count("cancel") == 0


def test_a_resumption_after_the_deadline(service: RawService, retry: Any) -> None:
    """A task that is resumed after the deadline polls once before it cancels the job."""
    service.on("poll", slowly)
    event = JobEvent("job-1", Reason.TIMED_OUT).payload()
    task = operator(deferrable=True)
    late = LONG_AGO.timestamp()
    assert task.execute_complete(retry, event, job_id="job-1", flow=FLOW, deadline=late) == "done"
    assert service.count("cancel") == 0


def test_a_job_that_still_runs_at_the_last_poll(service: RawService, retry: Any) -> None:
    """The last poll of a job that still runs ends the task."""
    service.on("poll", RUNNING).on("cancel", http(202, {"executionId": "job-1"}))
    event = JobEvent("job-1", Reason.TIMED_OUT).payload()
    task = operator(deferrable=True)
    with pytest.raises(NoukaiJobTimeoutException):
        task.execute_complete(retry, event, job_id="job-1", flow=FLOW, deadline=LONG_AGO.timestamp())
    assert service.count("cancel") == 1


async def test_a_trigger_after_its_deadline(service: RawService) -> None:
    """A trigger that starts after its deadline polls once, and fires for a job that has ended."""
    service.on("poll", slowly)
    trigger = NoukaiJobTrigger("job-1", FLOW, deadline=LONG_AGO.timestamp())
    (event,) = [JobEvent.read(event.payload) async for event in trigger.run()]
    assert event is not None
    assert event.reason is Reason.FINISHED
