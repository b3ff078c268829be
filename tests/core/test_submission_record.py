"""What is stored about a submission."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from noukai_core import Submission, SubmissionRecord

ID = "2c1f7c9e-8d4e-4f1b-9a57-0c6f3a1b2d4e"
FLOW = "acme/spelling/grade-3"
SENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.mark.parametrize("sent", [None, SENT, SENT.astimezone(timezone(timedelta(hours=5)))], ids=str)
@pytest.mark.parametrize("job_id", [None, "job-1"])
def test_a_record_is_read_as_it_was_written(sent: datetime | None, job_id: str | None) -> None:
    """Strings carry a record whole, whatever the time zone, and lead to its submission."""
    record = SubmissionRecord(submission_id=ID, flow=FLOW, last_sent_at=sent, job_id=job_id)
    strings = record.to_strings()
    assert all(isinstance(text, str) for pair in strings.items() for text in pair)
    assert SubmissionRecord.from_strings(strings | {"of a later version": "1"}) == record
    assert record.submission == Submission(ID, sent)


def test_a_subclass_adds_fields() -> None:
    """An integration keeps more, in its own form."""

    @dataclass(frozen=True, kw_only=True)
    class Record(SubmissionRecord):
        slot: int

    record = Record(submission_id=ID, flow=FLOW, slot=3)
    assert Record.from_strings(record.to_strings(), slot=3) == record


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"submission_id": ID},
        {"flow": FLOW},
        {"submission_id": ID, "flow": 7},
        {"submission_id": ID, "flow": FLOW, "job_id": {}},
        {"submission_id": ID, "flow": FLOW, "last_sent_at": "yesterday"},
        {"submission_id": ID, "flow": FLOW, "last_sent_at": "2026-01-01T00:00:00"},
        {"submission_id": ID, "flow": FLOW, "last_sent_at": 1.5},
    ],
    ids=repr,
)
def test_what_is_no_record_is_refused(stored: dict[str, Any]) -> None:
    """Others may have written to the same store."""
    with pytest.raises(ValueError, match=r"record|isoformat|last_sent_at"):
        SubmissionRecord.from_strings(stored)
