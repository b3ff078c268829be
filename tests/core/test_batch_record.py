"""The record of a batch, as the orchestrators keep it."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from noukai_core import JobFailedError, JobOutcome, OutcomeState
from noukai_core.batch_files import OutcomePart
from noukai_core.batch_record import BatchRecord

if TYPE_CHECKING:
    from noukai_core.batch_record import Row


async def test_rows_that_are_there_twice() -> None:
    """What is written again, after a write that seemed to fail, counts once."""
    log: list[Row] = []

    async def append(rows: list[Row]) -> None:
        log.extend(rows * 2)

    record = BatchRecord(append)
    error = JobFailedError("no luck", job_id="job-1", status=None)
    failed = JobOutcome(0, "job-1", OutcomeState.FAILED, error=error, cost_usd=Decimal(3), tokens=4)
    record.add(failed, keep_output=False, keep_failure=False)
    part = OutcomePart()
    part.add({"index": 1, "tokens": 5, "cost_usd": "1"})
    await record.begin_part(part)
    record.end_part(part)
    await record.store()

    again = BatchRecord.load(log, append, retried=False)
    assert (again.cost_usd, again.tokens, again.parts) == (Decimal(4), 9, [part.name])
    assert again.counts == {"completed": 1}
