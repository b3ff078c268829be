"""Findings of a review: a deadline while Prefect's server does not respond, and unverified sessions."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from noukai_core import LedgerEntry
from noukai_core.batch import SUBMITTING, new_session_of, submission_id_of
from noukai_prefect import _cancellation
from noukai_prefect._batch_record import BatchRecordLog
from noukai_prefect._cancellation import SubmissionState, cancel_or_keep
from tests.prefect.test_cancellation import FLOW, log, noukai_flow, run  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from noukai_core import AsyncFlow


async def test_a_timeout_while_the_server_of_prefect_does_not_respond(
    noukai_flow: AsyncFlow,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A timeout cancels the job even if Prefect's server takes a request and does not respond."""

    @asynccontextmanager
    async def hang() -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(_cancellation, "prefect_client", hang)
    job, flow_run_id = await noukai_flow.job("hello"), UUID(int=1)
    attempt = run(flow_run_id, times_out_at=0.0, flow_runs=((flow_run_id, 1),))
    await cancel_or_keep(SubmissionState(job=job), attempt, asyncio.CancelledError())
    assert (await job.status()).state == "cancelled"


def test_the_sessions_of_two_attempts_whose_record_is_not_verified() -> None:
    """A submission that two attempts recorded is looked for in both sessions, even with another key."""
    slot = UUID(int=8)
    sessions = {new_session_of(slot), new_session_of(slot)}
    rows = [
        {
            "entry": LedgerEntry(
                index=0,
                submission_id=submission_id_of(slot, 0, 0),
                session_id=session_id,
                state=SUBMITTING,
            ).to_list()
        }
        for session_id in sessions
    ]
    credentials: Any = SimpleNamespace(api_key=SecretStr("key"), saved_as=None)
    record = BatchRecordLog(SimpleNamespace(scope=UUID(int=7)), str(slot), FLOW, 1, credentials)  # type: ignore[arg-type]
    unsure = record._unsure_entries(rows, {})
    asked = {one.session_id for entry in unsure for one in (entry, *entry.concurrent)}
    assert asked == sessions
