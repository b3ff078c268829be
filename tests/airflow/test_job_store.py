"""What a task records for its next try."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from noukai_airflow._job_store import RECORD_KEY, JobRecord, JobStore, TaskKey, read_record
from noukai_core import Submission
from tests.airflow.conftest import FakeTask

if TYPE_CHECKING:
    from tests.airflow.conftest import MemoryStore

ID = "2c1f7c9e-8d4e-4f1b-9a57-0c6f3a1b2d4e"


def test_a_record_is_read_as_it_was_written(store: MemoryStore) -> None:
    """The next try reads what one try has written."""
    record = JobRecord.new(2, ID, "acme/demo/flow")
    JobStore(store).write(record)
    assert JobStore(store).read() == record


def test_changes_are_stored(store: MemoryStore) -> None:
    """Fields of a record can be changed later, for example when the job's id becomes known."""
    job_store = JobStore(store)
    job_store.write(JobRecord.new(0, ID, "acme/demo/flow"))
    job_store.change(job_id="job-1", abandoned=True)
    record = job_store.read()
    assert record is not None
    assert (record.job_id, record.abandoned, record.submission_id) == ("job-1", True, ID)


def test_a_change_without_a_record_makes_none(store: MemoryStore) -> None:
    """A change creates no record."""
    JobStore(store).change(abandoned=True)
    assert store.kept == {}


def test_a_response_that_an_interrupted_request_has_left_behind(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A try is not replaced because Airflow first returns the response to a request that was interrupted."""
    JobStore(store).write(JobRecord.new(0, ID, "acme/demo/flow"))
    get, left_behind = store.get, [None]
    monkeypatch.setattr(store, "get", lambda key: left_behind.pop() if left_behind else get(key))
    assert not JobStore(store).is_replaced()
    store.kept.clear()
    assert JobStore(store).is_replaced()


@pytest.mark.parametrize(
    "kept",
    [
        "text",
        {},
        {"max_tries": 1},
        {"max_tries": 1, "submission_id": ID, "last_sent_at": "yesterday", "flow": "a/b/c"},
        {"max_tries": 1, "submission_id": ID, "last_sent_at": "2026-01-01T00:00:00", "flow": "a/b/c"},
    ],
    ids=["text", "empty", "incomplete", "no time", "no time zone"],
)
def test_a_malformed_record_is_ignored(kept: Any, store: MemoryStore) -> None:
    """A store with other content does not stop a task."""
    store.kept["noukai_job"] = kept
    assert JobStore(store).read() is None


def test_a_record_of_a_later_version(store: MemoryStore) -> None:
    """Fields that a later version has added are ignored."""
    job_store = JobStore(store)
    job_store.write(JobRecord.new(0, ID, "acme/demo/flow"))
    store.kept["noukai_job"]["later"] = True
    assert job_store.read() is not None


def test_without_a_store_nothing_is_recorded() -> None:
    """Before Airflow 3.3, and with `durable=False`, nothing is recorded."""
    job_store = JobStore.of({}, durable=True)  # type: ignore[typeddict-item]
    job_store.write(JobRecord.new(0, ID, "acme/demo/flow"))
    assert (job_store.is_durable, job_store.read()) == (False, None)


def test_a_task_that_is_not_durable_has_no_store(store: MemoryStore) -> None:
    """`durable=False` does not use the task state store."""
    context: Any = {"task_state_store": store}
    assert not JobStore.of(context, durable=False).is_durable
    assert JobStore.of(context, durable=True).is_durable


def test_an_xcom_stands_in_for_the_store() -> None:
    """Without a state store, an XCom has the record for the API server, if that may cancel the job."""
    for options, expected in (
        ({"push_xcoms": True, "cancel_with": "noukai_default"}, "noukai_default"),
        ({"push_xcoms": True}, None),
        ({"cancel_with": "noukai_default"}, None),
    ):
        task = FakeTask()
        context: Any = {"ti": task}
        job_store = JobStore.of(context, durable=True, **options)  # type: ignore[arg-type]
        job_store.write(JobRecord.new(0, ID, "acme/demo/flow"))
        record = read_record(task.xcoms.get(RECORD_KEY))
        assert (record and record.cancel_with) == expected
        assert not job_store.is_durable
        job_store.forget()
        assert read_record(task.xcoms.get(RECORD_KEY)) is None


def test_a_record_leads_to_a_submission_that_may_have_been_sent() -> None:
    """The client knows when it was sent, and therefore asks the server before it sends anything."""
    record = JobRecord.new(0, ID, "acme/demo/flow")
    assert record.last_sent_at is not None
    assert record.submission == Submission(ID, record.last_sent_at)


def test_derived_identities_are_stable_and_distinct() -> None:
    """A task derives the same identity everywhere, and any other task, iteration, try or API key another."""
    key = TaskKey("dag", "run", "2026-01-01", "task", -1, "region 0")
    assert key.submission_id("nk_1", 1) == replace(key).submission_id("nk_1", 1)
    assert UUID(key.submission_id("nk_1", 1)).version == 5
    others = [
        replace(key, dag_id="dag2"),
        replace(key, run_id="run2"),
        replace(key, run_after="2026-01-02"),
        replace(key, task_id="task2"),
        replace(key, map_index=0),
        replace(key, loop="region 1"),
    ]
    ids = [other.submission_id("nk_1", 1) for other in (key, *others)]
    ids += [key.submission_id("nk_1", 2), key.submission_id("nk_1", 1, resubmission=1)]
    ids.append(key.submission_id("nk_2", 1))
    assert len(set(ids)) == len(others) + 4
