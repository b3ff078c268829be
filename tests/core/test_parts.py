"""The files of a batch's outcomes: two attempts that are alive at the same time, and one that crashed."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from noukai_core import JobFailedError, JobOutcome, LedgerEntry, OutcomeState
from noukai_core.batch import SUBMITTED
from noukai_core.batch_files import OutcomePart, is_part
from noukai_core.batch_record import BatchRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from noukai_core.batch_record import Row

ID = str(UUID(int=7))


def entry(index: int, state: str = SUBMITTED) -> LedgerEntry:
    """Return the entry of an input whose job is known."""
    return LedgerEntry(index=index, submission_id=ID, session_id=ID, job_id=f"job-{index}", state=state)


class Attempt:
    """One process that runs a batch, with the log and the files of all attempts.

    Args:
        log: The log.
        files: The output folder.
    """

    def __init__(self, log: list[Row], files: dict[str, str]) -> None:
        self._log = log
        self._files = files
        self.record = BatchRecord.load(list(log), self._append, retried=False)
        for name in list(self.record.begun_parts):
            if name in files:
                self.record.adopt_part(name, files[name].encode())
        self.part = OutcomePart(len(self.record.parts))

    async def _append(self, rows: list[Row]) -> None:
        self._log.extend(rows)

    async def submit(self, *indexes: int) -> None:
        """Record that there are jobs."""
        for index in indexes:
            await self.record.write(entry(index))
        await self.record.store()

    async def complete(self, *indexes: int) -> None:
        """Take outcomes."""
        for index in indexes:
            await self.record.write(entry(index, OutcomeState.COMPLETED))
            outcome = JobOutcome(
                index, f"job-{index}", OutcomeState.COMPLETED, "good", tokens=2, cost_usd=Decimal(1)
            )
            self.part.add(self.record.add(outcome, keep_output=False))

    async def write(self) -> None:
        """Write the part, and do not get to record it."""
        await self.record.begin_part(self.part)
        assert self.part.name not in self._files
        self._files[self.part.name] = self.part.text

    async def flush(self) -> None:
        """Write the part, and record it."""
        await self.write()
        self.record.end_part(self.part)
        self.written, self.part = self.part.name, self.part.following()
        await self.record.store()


def counted(record: BatchRecord) -> tuple[dict[str, int], int, Decimal]:
    """Return the sums."""
    return +record.counts, record.tokens, record.cost_usd


def kept(record: BatchRecord) -> set[int]:
    """Return the inputs that a rerun leaves out."""
    return {index for index, one in record.read().items() if one.kept}


async def test_two_attempts_at_the_same_time() -> None:
    """Each writes files of its own, and a third one counts each job once, with what it used."""
    log: list[Row] = []
    files: dict[str, str] = {}
    first = Attempt(log, files)
    await first.submit(0, 1, 2)
    second = Attempt(log, files)
    await first.complete(0, 1)
    await second.complete(1, 2)
    await first.flush()
    await second.flush()
    assert len(files) == 2
    third = Attempt(log, files)
    assert kept(third.record) == {0, 1, 2}
    assert third.record.parts == [first.written, second.written]
    assert counted(third.record) == ({"completed": 3}, 6, Decimal(3))


async def test_a_job_that_two_attempts_saw_fail() -> None:
    """What a job used counts once, in whichever form the attempts recorded it."""
    log: list[Row] = []
    first = Attempt(log, {})
    await first.submit(0)
    second = Attempt(log, {})
    for attempt, seconds, keep in ((first, 1.0, True), (second, 2.0, True), (second, 3.0, False)):
        error = JobFailedError("no luck", job_id="job-0", status=None)
        used: Any = {"tokens": 2, "cost_usd": Decimal(1), "seconds": seconds}
        outcome = JobOutcome(0, "job-0", OutcomeState.FAILED, error=error, **used)
        await attempt.record.write(entry(0, OutcomeState.FAILED))
        attempt.record.add(outcome, keep_output=False, keep_failure=keep)
        await attempt.record.store()
    assert counted(Attempt(log, {}).record) == ({"failed": 1}, 2, Decimal(1))


async def test_a_crash_after_a_part_was_written() -> None:
    """The next attempt lets it count: its outcomes are neither written again nor fetched again."""
    log: list[Row] = []
    files: dict[str, str] = {}
    first = Attempt(log, files)
    await first.submit(0, 1)
    await first.complete(0)
    await first.flush()
    await first.complete(1)
    await first.write()
    second = Attempt(log, files)
    assert kept(second.record) == {0, 1}
    await second.record.store()
    third = Attempt(log, files)
    assert kept(third.record) == {0, 1}
    for record in (second.record, third.record):
        assert counted(record) == ({"completed": 2}, 4, Decimal(2))
        assert (record.parts, record.begun_parts) == (sorted(files), {})


@pytest.mark.parametrize("change", [lambda text: text[:-5], lambda text: "", lambda text: text + text])
async def test_a_part_that_is_not_what_was_to_be_written(change: Callable[[str], str]) -> None:
    """Nothing of a file that was cut off, or that another wrote, counts."""
    log: list[Row] = []
    files: dict[str, str] = {}
    first = Attempt(log, files)
    await first.submit(0, 1)
    await first.complete(0, 1)
    await first.write()
    files[first.part.name] = change(files[first.part.name])
    second = Attempt(log, files).record
    assert (kept(second), second.parts, counted(second)) == (set(), [], ({}, 0, Decimal(0)))


async def test_a_part_that_is_written_later() -> None:
    """A part that is not yet there changes nothing, until the attempt that is alive has written it."""
    log: list[Row] = []
    files: dict[str, str] = {}
    first = Attempt(log, files)
    await first.submit(0)
    await first.complete(0)
    await first.record.begin_part(first.part)
    second = Attempt(log, files)
    assert (kept(second.record), second.record.counts) == (set(), {})
    await first.flush()
    assert kept(Attempt(log, files).record) == {0}


async def test_an_outcome_that_cannot_be_read() -> None:
    """Its input is not done: it is polled again, and its output is not lost."""
    log: list[Row] = []
    first = Attempt(log, {})
    await first.submit(0)
    await first.record.write(entry(0, OutcomeState.COMPLETED))
    first.record.add(JobOutcome(0, "job-0", OutcomeState.COMPLETED, "good"), keep_output=True)
    await first.record.store()
    assert kept(Attempt(log, {}).record) == {0}
    log[-1] = {**log[-1], "outcome": {"index": 0}}
    found = Attempt(log, {}).record
    assert (kept(found), found.outputs) == (set(), {})
    assert found.read()[0].job_id == "job-0"


@pytest.mark.parametrize(
    "name", ["../part-00001-0123abcd.jsonl", "part-00001.jsonl", "batch.json", "/etc/passwd", "", None, 1, []]
)
async def test_names_of_parts(name: object) -> None:
    """The name of another file, or of one in another folder, is not believed."""
    part: Any = {"part": {"name": name, "digest": "", "rows": []}}
    record = Attempt([part, {"written": name}], {}).record
    assert (record.parts, record.begun_parts) == ([], {})


def test_the_names_sort() -> None:
    """A part comes after those before it, and no other attempt has one of the same name."""
    part = OutcomePart()
    names = [part.name, part.following().name, part.following().following().name]
    assert names == sorted(names)
    assert all(map(is_part, names))
    assert OutcomePart().name != part.name
