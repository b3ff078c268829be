"""Attempts of a batch that live at the same time: each may record what another one does not know."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from noukai_core import AsyncNoukai, InvalidInputError, JobFailedError, JobOutcome, LedgerEntry, OutcomeState
from noukai_core.batch import SUBMITTED, SUBMITTING, new_session_of, submission_id_of
from noukai_core.batch_files import OutcomePart
from noukai_core.batch_record import BatchRecord, entries_of
from noukai_core.errors import BadRequestError
from tests.core.test_batch import BATCH, FLOW, run

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

BATCH_ID = UUID(BATCH)
A, B = new_session_of(BATCH_ID), new_session_of(BATCH_ID)


def entry(session_id: str, state: str, **changes: Any) -> LedgerEntry:
    resubmission = changes.get("resubmission", 0)
    known: dict[str, Any] = {
        "index": 0,
        "submission_id": submission_id_of(BATCH_ID, 0, resubmission),
        "session_id": session_id,
        "state": state,
    }
    return LedgerEntry(**(known | changes))


async def append(rows: list[Any]) -> None:
    """Keep nothing."""


def test_a_late_row_of_a_submission_that_was_replaced() -> None:
    """What an attempt that was cut off records of a replaced job does not hide the job that replaced it."""
    old = entry(A, OutcomeState.FAILED, job_id="job-old")
    new = entry(B, SUBMITTED, job_id="job-new", resubmission=1)
    rows = [{"entry": one.to_list()} for one in (old, new, old)]
    assert entries_of(rows)[0].job_id == "job-new"


def test_an_outcome_whose_entry_does_not_count() -> None:
    """An input of which a job may be running has no outcome yet, so it is counted once."""
    rejected = JobOutcome(0, None, OutcomeState.REJECTED, error=BadRequestError("bad"), seconds=0.1)
    rows: list[Any] = [
        {"entry": entry(A, SUBMITTING).to_list()},
        {"entry": entry(B, SUBMITTING).to_list()},
        {
            "entry": entry(B, OutcomeState.REJECTED, kept=True).to_list(),
            "outcome": rejected.to_json(),
        },
    ]
    record = BatchRecord.load(rows, append, retried=False)
    assert record.read()[0].unfinished
    record.add(JobOutcome(0, "job", OutcomeState.COMPLETED, output=1, seconds=0.1), keep_output=True)
    assert (sum(record.counts.values()), record.failures) == (1, {})


async def test_a_part_of_another_attempt() -> None:
    """A job that failed in one attempt, and whose input completed in another one, is not submitted again."""
    rows: list[Any] = []

    async def keep(added: list[Any]) -> None:
        rows.extend(added)

    failed, completed = BatchRecord.load((), keep, retried=False), BatchRecord.load((), keep, retried=False)
    for record, session, job in ((failed, A, "job-a"), (completed, B, "job-b")):
        await record.write(entry(session, SUBMITTED, job_id=job))
    failure = JobOutcome(0, "job-a", OutcomeState.FAILED, error=JobFailedError("bad", job_id="job-a"))
    await failed.write(entry(A, OutcomeState.FAILED, job_id="job-a"))
    failed.add(failure, keep_output=False)
    await failed.store()
    part = OutcomePart(0)
    await completed.write(entry(B, OutcomeState.COMPLETED, job_id="job-b"))
    part.add(completed.add(JobOutcome(0, "job-b", OutcomeState.COMPLETED, output=1), keep_output=False))
    await completed.begin_part(part)
    completed.end_part(part)
    await completed.store()

    record = BatchRecord.load(rows, append, retried=True)
    assert record.counts == Counter(completed=1)
    assert [one.kept for one in record.read().values()] == [True]


def test_a_coroutine_decides_for_a_blocking_client(emulator: Emulator) -> None:
    """A coroutine function is an error of a blocking client, and cancels no job."""
    emulator.control.script("grade-3", outcome="never")

    async def no() -> bool:
        return False

    options: Any = {"timeout": 0.5, "cancel_on_timeout": no}
    with pytest.raises(InvalidInputError, match="cancel_on_timeout is async, but the client is not"):
        run("sync", emulator, ["m"], **options)
    assert "cancelled" not in {job["state"] for job in emulator.control.jobs()}


def test_both_attempts_made_a_job(emulator: Emulator) -> None:
    """If both attempts made a job for an input, a cancel ends both."""
    emulator.control.script("grade-3", outcome="never")

    async def go() -> None:
        async with AsyncNoukai("nk_test_key", base_url=emulator.base_url, recovery_timeout=0.5) as client:
            flow = client.flow(FLOW)
            for session_id in (A, B):
                await flow.job("a", session_id=session_id)
            rows = [{"entry": entry(one, SUBMITTING).to_list()} for one in (A, B)]
            record = BatchRecord.load(rows, append, retried=True)
            await flow.jobs((), ledger=record, batch_id=BATCH).cancel("not wanted")

    asyncio.run(go())
    assert [job["state"] for job in emulator.control.jobs()] == ["cancelled", "cancelled"]


def test_a_users_session_of_another_attempt(emulator: Emulator) -> None:
    """A job in a session of the user's, which groups other jobs, is not taken for that of an input."""
    emulator.control.script("grade-3", outcome="never")

    async def go() -> None:
        async with AsyncNoukai("nk_test_key", base_url=emulator.base_url, recovery_timeout=0.5) as client:
            flow = client.flow(FLOW)
            await flow.job("somebody else's", session_id=A)
            users = [entry(one, SUBMITTING, in_users_session=True) for one in (A, B)]
            record = BatchRecord.load([{"entry": one.to_list()} for one in users], append, retried=True)
            await flow.jobs((), ledger=record, batch_id=BATCH).cancel("not wanted")

    asyncio.run(go())
    assert "cancelled" not in {job["state"] for job in emulator.control.jobs()}


def test_a_late_row_makes_no_second_job(emulator: Emulator) -> None:
    """An input whose job was replaced is not submitted again because of a late row about the first job."""
    emulator.control.script("grade-3", outcome="never")
    written: list[Any] = []

    async def keep(rows: list[Any]) -> None:
        written.extend(rows)

    old = {"entry": entry(A, OutcomeState.FAILED, job_id="job-old").to_list()}
    options: Any = {"batch_id": BATCH, "detach": True, "recovery_timeout": 0.5}
    run("async", emulator, ["a"], ledger=BatchRecord.load([old], keep, retried=True), **options)

    job_id = str(emulator.control.jobs()[0]["id"])
    new = {"entry": entry(B, SUBMITTED, job_id=job_id, resubmission=1).to_list()}
    run("async", emulator, ["a"], ledger=BatchRecord.load([old, new, old], keep, retried=True), **options)
    assert len(emulator.control.jobs()) == 1
