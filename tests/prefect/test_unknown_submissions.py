"""What may have been submitted is neither submitted again nor left running without a line that names it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

from noukai_core import JobRequest, Submission, SubmissionUnknownError
from noukai_core._engine import submission_registry
from noukai_prefect import NoukaiCredentials
from noukai_prefect._batch import Batch, BatchOptions, JobOutcome
from noukai_prefect._batch_table import BatchTable, StoredBatch, _StoredRow
from noukai_prefect._cancellation import SubmissionState, cancel_or_keep
from noukai_prefect._run_context import RunContext
from tests.core.raw_service import ACCEPTED, LOST, RUNNING, RawService, http

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"
KEPT = RunContext(None, None, 1, None, None)  # an interruption leaves its jobs running
REFUSED = http(403, {"detail": {"code": "FORBIDDEN", "message": "This key may not list sessions."}})


@pytest.fixture
def service() -> Iterator[RawService]:
    """A service whose responses are written by hand."""
    with RawService() as service:
        yield service


@pytest.fixture
def credentials(service: RawService) -> NoukaiCredentials:
    """Credentials of that service."""
    return NoukaiCredentials(api_key=SecretStr("nk_test_unknown_0123456789"), base_url=service.base_url)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings in the log of the run, which Prefect keeps from the loggers above it."""
    lines: list[str] = []
    logger = logging.getLogger("kept lines")
    monkeypatch.setattr(logger, "warning", lambda line, *about: lines.append(line % about))
    monkeypatch.setattr(RunContext, "logger", lambda _: logger)
    return lines


class Attempts:
    """The attempts of a flow run with one batch of one job, each in a new process.

    Each begins with what the one before stored.
    """

    def __init__(self, credentials: NoukaiCredentials) -> None:
        self._credentials = credentials
        self._slot = str(uuid4())
        self._stored: StoredBatch | None = None

    def begin(self) -> BatchTable:
        """Begin an attempt."""
        table = BatchTable(KEPT, self._slot, FLOW, ["hello"], self._credentials)
        if self._stored is not None:
            table._load(self._stored)
        return table

    def end(self, table: BatchTable) -> None:
        """End an attempt as every attempt ends: with a last write."""
        rows = [row for stored in json.loads(table._record_data()) if (row := _StoredRow.read(stored))]
        metadata = table._metadata(final=True)
        self._stored = StoredBatch(uuid4(), UUID(self._slot), datetime.now(UTC), metadata, rows)

    async def run(self, table: BatchTable, timeout: float | None = None) -> JobOutcome:
        """Run the batch, and return its outcome."""
        submission_registry._registry.cache_clear()  # as in a new process
        options = BatchOptions(
            timeout=timeout,
            poll_interval=0.1,
            cancel_on_timeout=False,
            max_concurrency=1,
            max_polls_per_second=50,
            raise_on="none",
        )
        async with self._credentials.get_client("async") as client:
            requests = [JobRequest(FLOW, "hello")]
            (outcome,) = await Batch(client.flow(FLOW), requests, options, KEPT, table).outcomes()
        self.end(table)
        return outcome


async def test_an_attempt_that_never_came_to_a_row_forgets_nothing_of_it(
    service: RawService, credentials: NoukaiCredentials
) -> None:
    """A job that an earlier attempt may have made is looked up, though the attempt between never did so."""
    service.on("submit", LOST, ACCEPTED).on("session", REFUSED).on("poll", RUNNING)
    attempts = Attempts(credentials)
    assert isinstance((await attempts.run(attempts.begin())).error, SubmissionUnknownError)
    attempts.end(attempts.begin())  # interrupted before the row had its turn
    assert isinstance((await attempts.run(attempts.begin(), timeout=3.0)).error, SubmissionUnknownError)
    assert service.count("submit") == 1


async def test_a_row_that_times_out_is_not_called_completed(
    service: RawService, credentials: NoukaiCredentials
) -> None:
    """An outcome without an output says why, and not what an earlier attempt saw of the job."""
    service.on("poll", http(503))
    attempts = Attempts(credentials)
    table = attempts.begin()
    table.rows[0].job_id, table.rows[0].state = "job-1", "completed"
    outcome = await attempts.run(table, timeout=1.0)
    assert (outcome.state, outcome.output, type(outcome.error).__name__) == (
        "JobTimeoutError",
        None,
        "JobTimeoutError",
    )


async def test_a_submission_that_is_kept_is_named(
    credentials: NoukaiCredentials, warnings: list[str]
) -> None:
    """An interruption that cancels nothing names the submission whose response had not arrived."""
    submission = Submission.new()
    async with credentials.get_client("async") as client:
        state = SubmissionState(submission=(client.flow(FLOW), submission))
        assert not await cancel_or_keep(state, KEPT, asyncio.CancelledError())
    assert [line for line in warnings if f"{submission.id} to {FLOW}: may be left running" in line]


async def test_jobs_of_a_batch_that_are_kept_are_named(emulator: Emulator, warnings: list[str]) -> None:
    """An interruption that cancels nothing names the jobs and the submissions of the batch."""
    emulator.control.script("grade-3", outcome="never")
    credentials = NoukaiCredentials(
        api_key=SecretStr("nk_test_unknown_0123456789"), base_url=emulator.base_url
    )
    attempts = Attempts(credentials)
    table = attempts.begin()
    batch = asyncio.ensure_future(attempts.run(table))
    await asyncio.to_thread(emulator.control.wait_for, "poll", 1)
    batch.cancel()
    with suppress(asyncio.CancelledError):
        await batch
    assert [line for line in warnings if f"left running (1 jobs: {table.rows[0].job_id}; a rerun" in line]
