"""What may have been submitted is neither submitted again nor left running without a line that names it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from pydantic import SecretStr

from noukai_core import Submission
from noukai_prefect import NoukaiCredentials
from noukai_prefect._batch import BatchOptions, BatchRun
from noukai_prefect._batch_inputs import BatchInputs
from noukai_prefect._cancellation import SubmissionState, cancel_or_keep
from noukai_prefect._run_context import RunContext
from tests.core.raw_service import RawService

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"
KEPT = RunContext(None, None, 1, None, None)  # an interruption leaves its jobs running


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
    async with credentials.get_client("async") as client:
        batch = BatchRun(
            client.flow(FLOW),
            BatchInputs(FLOW, ["hello"], "production", False),
            BatchOptions(poll_interval=0.1),
            KEPT,
            str(uuid4()),
            credentials,
        )
        following = asyncio.ensure_future(anext(batch.outcomes()))
        await asyncio.to_thread(emulator.control.wait_for, "poll", 1)
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
    (job,) = emulator.control.jobs()
    assert [line for line in warnings if f"left running (1 jobs: {job['id']}; outside a run" in line]
    assert job["state"] != "cancelled"
