"""Cancelling the jobs of a batch by their sessions, on a real socket."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from noukai_airflow import _batch_sessions
from noukai_airflow._batch_sessions import cancel_sessions
from noukai_core import AsyncNoukai
from tests.core.raw_service import RawService, http, listed
from tests.core.scripted_server import FLOW

SESSION = "3b241101-e2bb-4255-8caf-4136c566a962"


def job(number: int, status: str) -> dict[str, Any]:
    return {"executionId": f"job-{number}", "status": status, "triggerType": "job"}


def test_a_job_that_is_listed_late_is_cancelled_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cancel goes on until each job of the session was listed, those that it has cancelled once only."""
    monkeypatch.setattr(_batch_sessions, "_LISTING_PAUSE", 0.01)

    async def cancel(base_url: str) -> int:
        async with AsyncNoukai("nk_test_sessions_0123456789", base_url=base_url) as client:
            return await cancel_sessions(client.flow(FLOW), {SESSION: 3}, logging.getLogger())

    with RawService() as service:
        service.on("cancel", http(202)).on(
            "session",
            listed(job(1, "running")),
            listed(job(1, "cancelled"), job(2, "running")),
            listed(job(1, "cancelled"), job(2, "cancelled"), job(3, "running")),
        )
        assert asyncio.run(cancel(service.base_url)) == 3
        assert service.count("cancel") == 3
