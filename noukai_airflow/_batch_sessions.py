"""Cancels the jobs of a batch by their sessions, where nobody has the jobs' ids."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from noukai_airflow._kill_policy import USER_ENDED
from noukai_core import acancel_job

if TYPE_CHECKING:
    from noukai_core import AsyncFlow, AsyncJob
    from noukai_core.cancellation import Logger

_CANCEL_CONCURRENCY = 32
_LISTING_PAUSE = 2.0


async def cancel_sessions(flow: AsyncFlow, sessions: Mapping[str, int | None], log: Logger) -> int:
    """Cancel all jobs of sessions that have not ended, even those that the lists show only later.

    It ends when the lists have shown all jobs, so its time should be limited.

    Args:
        flow: The flow of the jobs.
        sessions: How many jobs each session has; `None` if that is not known, so that a list without a new
            job is the last.
        log: Where a cancel that fails is logged.

    Returns:
        How many jobs were cancelled.
    """
    semaphore = asyncio.Semaphore(_CANCEL_CONCURRENCY)

    async def cancel(job: AsyncJob) -> bool:
        async with semaphore:
            outcome = await acancel_job(job, confirm=False)  # the list shows what came of it
        if outcome.error is not None:
            outcome.log(USER_ENDED, log)
        return outcome.cancelled

    async def cancel_session(session_id: str, jobs: int | None) -> int:
        tried: set[str] = set()
        cancelled = 0
        while True:
            running, ended = await flow.running_in(session_id)
            new = [job for job in running if job.id not in tried]
            tried.update(job.id for job in new)
            cancelled += sum(await asyncio.gather(*map(cancel, new)))
            if not new if jobs is None else len(running) + ended >= jobs:
                return cancelled
            await asyncio.sleep(_LISTING_PAUSE)

    return sum(await asyncio.gather(*(cancel_session(*item) for item in sessions.items())))


def log_cancelled_sessions(flow: str, cancelled: int, log: Logger) -> None:
    """Log how many jobs of a batch were cancelled."""
    log.info("Noukai batch of %s: cancelled (%s; %d jobs)", flow, USER_ENDED, cancelled)


def log_failed_cancel(flow: str, sessions: Iterable[str], reason: str, log: Logger) -> None:
    """Log that jobs of a batch may still be running, with their sessions."""
    log.warning(
        "Noukai batch of %s: cancel failed (%s; may still be running: jobs of the sessions %s)",
        flow,
        reason,
        ", ".join(sessions),
    )
