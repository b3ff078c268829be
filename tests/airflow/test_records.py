"""What a task remembers from one try to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from noukai_airflow.records import JobBook, JobRecord, derived_submission_id

if TYPE_CHECKING:
    from tests.airflow.conftest import MemoryStore

ID = "2c1f7c9e-8d4e-4f1b-9a57-0c6f3a1b2d4e"


def test_a_record_is_read_as_it_was_written(store: MemoryStore) -> None:
    """What is written in one try is there in the next."""
    record = JobRecord.new(2, ID, "acme/demo/flow")
    JobBook(store).write(record)
    assert JobBook(store).read() == record


def test_changes_are_kept(store: MemoryStore) -> None:
    """Parts of a record can be changed later, as when the job's id becomes known."""
    book = JobBook(store)
    book.write(JobRecord.new(0, ID, "acme/demo/flow"))
    book.change(job_id="job-1", given_up=True)
    record = book.read()
    assert record is not None
    assert (record.job_id, record.given_up, record.submission_id) == ("job-1", True, ID)


def test_a_change_without_a_record_makes_none(store: MemoryStore) -> None:
    """Nothing comes into being by a change."""
    JobBook(store).change(given_up=True)
    assert store.kept == {}


@pytest.mark.parametrize(
    "kept",
    [
        "text",
        {},
        {"generation": 1},
        {"generation": 1, "submission_id": ID, "sent_at": "yesterday", "flow": "a/b/c"},
        {"generation": 1, "submission_id": ID, "sent_at": "2026-01-01T00:00:00", "flow": "a/b/c"},
    ],
    ids=["text", "empty", "parts", "no time", "no time zone"],
)
def test_a_record_that_makes_no_sense_counts_as_none(kept: Any, store: MemoryStore) -> None:
    """A store with something else in it does not stop a task."""
    store.kept["noukai_job"] = kept
    assert JobBook(store).read() is None


def test_a_record_of_a_later_version(store: MemoryStore) -> None:
    """Fields that a later version has added are passed over."""
    book = JobBook(store)
    book.write(JobRecord.new(0, ID, "acme/demo/flow"))
    store.kept["noukai_job"]["later"] = True
    assert book.read() is not None


def test_without_a_store_nothing_is_kept() -> None:
    """Below Airflow 3.3, and with `durable=False`, a book forgets."""
    book = JobBook.of({}, durable=True)  # type: ignore[typeddict-item]
    book.write(JobRecord.new(0, ID, "acme/demo/flow"))
    assert (book.keeps, book.read()) == (False, None)


def test_a_task_that_is_not_durable_has_no_book(store: MemoryStore) -> None:
    """`durable=False` leaves the task state store alone."""
    context: Any = {"task_state_store": store}
    assert not JobBook.of(context, durable=False).keeps
    assert JobBook.of(context, durable=True).keeps


def test_a_record_leads_to_a_submission_that_may_have_been_sent() -> None:
    """The client is told when it was first sent, and so asks the server before it sends anything."""
    record = JobRecord.new(0, ID, "acme/demo/flow")
    assert (record.submission().id, record.submission().sent_at) == (ID, record.sent)


def test_derived_identities_are_stable_and_distinct() -> None:
    """A task derives the same identity everywhere, and any other task, generation or number another."""
    task = ("dag", "run", "task", -1, 1, 0)
    assert derived_submission_id(*task) == derived_submission_id(*task)
    assert UUID(derived_submission_id(*task)).version == 5
    others = [
        ("dag2", "run", "task", -1, 1, 0),
        ("dag", "run2", "task", -1, 1, 0),
        ("dag", "run", "task2", -1, 1, 0),
        ("dag", "run", "task", 0, 1, 0),
        ("dag", "run", "task", -1, 2, 0),
        ("dag", "run", "task", -1, 1, 1),
    ]
    assert len({derived_submission_id(*other) for other in [task, *others]}) == len(others) + 1
