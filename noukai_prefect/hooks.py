"""Flow hooks that find the jobs of a run, even when the run's own process no longer exists.

Set them on a flow: `@flow(on_cancellation=[cancel_noukai_jobs], on_crashed=[log_resumable_noukai_jobs])`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger

from noukai_core import AsyncJob, AsyncNoukai, CancelOutcome, JobState, NoukaiError, acancel_job
from noukai_prefect._artifacts import with_subflows
from noukai_prefect._batch_table import read_unfinished, record_cancelled
from noukai_prefect._cancellation import CANCEL_CONCURRENCY
from noukai_prefect._job_store import JobRecord, mark_ended, read_records
from noukai_prefect._sync import run_blocking
from noukai_prefect.credentials import NoukaiCredentials

if TYPE_CHECKING:
    from noukai_prefect._run_context import LoggerOrAdapter

_REASON = "the flow run was cancelled"


def cancel_noukai_jobs(
    flow: Flow[..., Any], flow_run: FlowRun, state: State[Any], *, credentials: str = "default"
) -> None:
    """Cancel the jobs of a flow run that a person cancelled, and of its subflows, for `on_cancellation`.

    The tasks cancel their own jobs. This hook is for a process that was killed before it had done so. A job
    that has ended is not affected.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: The state of the run.
        credentials: The name of the `NoukaiCredentials` block for jobs that were not submitted with a stored
            block. Bind another name with `functools.partial`.
    """
    run_blocking(_cancel_all(flow_run.id, credentials, flow_run_logger(flow_run, flow)))


def log_resumable_noukai_jobs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Log the jobs of a crashed flow run that a retry attaches to, for `on_crashed`.

    These are the running ones, and single jobs that have completed; no request is made to tell them apart.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: The state of the run.
    """
    logger = flow_run_logger(flow_run, flow)
    for record in run_blocking(_unfinished_of(flow_run.id)):
        if record.job_id is not None:
            logger.info(
                "Noukai job %s of %s: left running (a retry of this flow run attaches to it)",
                record.job_id,
                record.flow,
            )


async def _unfinished_of(flow_run_id: UUID) -> list[JobRecord]:
    return await _unfinished(await with_subflows(flow_run_id))


async def _unfinished(scopes: Sequence[UUID]) -> list[JobRecord]:
    """Return what flow runs have submitted, or may have, and did not see fail or cancel."""
    single = [record for record in await read_records(scopes) if not record.ended]
    return single + await read_unfinished(scopes)


async def _cancel_all(flow_run_id: UUID, default: str, logger: LoggerOrAdapter) -> None:
    """Cancel the jobs of a flow run, with one client for each credentials block."""
    by_block: defaultdict[str, list[JobRecord]] = defaultdict(list)
    scopes = await with_subflows(flow_run_id)
    for record in await _unfinished(scopes):
        by_block[record.credentials or default].append(record)
    for name, records in by_block.items():
        # A broken block, or a fault of Prefect, must not keep the jobs of other blocks from being cancelled.
        try:
            block: NoukaiCredentials = await NoukaiCredentials.aload(name)
            cancelled = await _cancel_with(block, records, logger)
        except Exception as error:
            for record in records:
                _log_not_cancelled(record, f"credentials block {name!r} cannot be used: {error}", logger)
            continue
        try:
            await record_cancelled(scopes, cancelled)
        except Exception as error:
            logger.warning("Prefect flow run %s: table not written: %s", flow_run_id, error)


async def _cancel_with(
    credentials: NoukaiCredentials, records: Sequence[JobRecord], logger: LoggerOrAdapter
) -> dict[str, str]:
    """Cancel jobs, and return the ids of those that did not complete, by the id of the submission."""
    cancelled: dict[str, str] = {}
    semaphore = asyncio.Semaphore(CANCEL_CONCURRENCY)
    async with credentials.get_client("async") as client:

        async def bounded(record: JobRecord) -> None:
            async with semaphore:
                try:
                    if job_id := await _cancel(client, record, logger):
                        cancelled[record.submission_id] = job_id
                except NoukaiError as error:
                    _log_not_cancelled(record, error, logger)

        await asyncio.gather(*(bounded(record) for record in records))
    return cancelled


def _log_not_cancelled(record: JobRecord, why: NoukaiError | str, logger: LoggerOrAdapter) -> None:
    if record.job_id:
        CancelOutcome(record.job_id, record.flow, error=why).log(_REASON, logger)
    else:
        logger.warning(
            "Noukai submission %s to %s: may be left running (%s)", record.submission_id, record.flow, why
        )


async def _cancel(client: AsyncNoukai, record: JobRecord, logger: LoggerOrAdapter) -> str | None:
    """Cancel a job. If a killed process recorded only the submission, find its job first."""
    flow = client.flow(record.flow)
    if record.job_id:
        job: AsyncJob | None = flow.attach(record.job_id, submitted_at=record.last_sent_at)
    else:
        job = await flow.find(record.submission)
    if job is None:
        return None
    status = await job.status()
    if not status.finished:
        outcome = await acancel_job(job)
        outcome.log(_REASON, logger)
        if outcome.error is not None:
            return None
        status = outcome.status or status
    if status.state == JobState.COMPLETED:
        return None
    try:
        await mark_ended(replace(record, job_id=job.id))
    except Exception as error:
        logger.warning("Noukai job %s of %s: not recorded (%s)", job.id, job.flow, error)
    return job.id
