"""Flow hooks that find the jobs of a run, also when the run's own process is gone.

Put them on a flow: `@flow(on_cancellation=[cancel_noukai_jobs], on_crashed=[log_resumable_noukai_jobs])`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger

from noukai_core import AsyncJob, AsyncNoukai, CancelUnsupportedError, JobState, NoukaiError
from noukai_prefect._batch_table import note_cancelled, read_unfinished
from noukai_prefect._job_store import JobRecord, mark_ended, read_records, with_subflows
from noukai_prefect._sync import run_blocking
from noukai_prefect.credentials import NoukaiCredentials

if TYPE_CHECKING:
    from noukai_prefect._run_context import LoggerOrAdapter

_CANCELS_IN_FLIGHT = 32


def cancel_noukai_jobs(
    flow: Flow[..., Any], flow_run: FlowRun, state: State[Any], *, credentials: str = "default"
) -> None:
    """Cancel every job of a flow run that a person cancelled, and of its subflows, for `on_cancellation`.

    The tasks cancel their own jobs; this is for what they could not: a process that was killed before it had
    done so. A job that has ended is not affected.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: The state that the run is in.
        credentials: The name of the `NoukaiCredentials` block for jobs whose own credentials are no stored
            block; bind another one with `functools.partial`.
    """
    run_blocking(_cancel_all(flow_run.id, credentials, flow_run_logger(flow_run, flow)))


def log_resumable_noukai_jobs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Say in the log of a crashed flow run which of its jobs a retry attaches to, for `on_crashed`.

    Those are the jobs that run, and single ones that have completed: no request is made to tell them apart.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: The state that the run is in.
    """
    logger = flow_run_logger(flow_run, flow)
    for record in run_blocking(_unfinished_of(flow_run.id)):
        if record.job_id is not None:
            logger.info(
                "Noukai job %s of %s is kept; a retry of this flow run attaches to it",
                record.job_id,
                record.flow,
            )


async def _unfinished_of(flow_run_id: UUID) -> list[JobRecord]:
    return await _unfinished(await with_subflows(flow_run_id))


async def _unfinished(scopes: Sequence[UUID]) -> list[JobRecord]:
    """Return what flow runs have submitted, or may have, and not seen end badly."""
    single = [record for record in await read_records(scopes) if not record.ended]
    return single + await read_unfinished(scopes)


async def _cancel_all(flow_run_id: UUID, default: str, logger: LoggerOrAdapter) -> None:
    """Cancel the jobs of a flow run, those of each block of credentials with one client."""
    of_block: defaultdict[str, list[JobRecord]] = defaultdict(list)
    scopes = await with_subflows(flow_run_id)
    for record in await _unfinished(scopes):
        of_block[record.credentials or default].append(record)
    for name, records in of_block.items():
        # Whatever is wrong with one block, or for a moment with Prefect, the jobs of others are cancelled.
        try:
            block: NoukaiCredentials = await NoukaiCredentials.aload(name)
            cancelled = await _cancel_with(block, records, logger)
        except Exception as error:
            logger.error("%d Noukai jobs go on: their credentials cannot be used: %s", len(records), error)
            continue
        try:
            await note_cancelled(scopes, cancelled)
        except Exception as error:
            logger.warning("Prefect's tables do not show which Noukai jobs were cancelled: %s", error)


async def _cancel_with(
    credentials: NoukaiCredentials, records: Sequence[JobRecord], logger: LoggerOrAdapter
) -> dict[str, str]:
    """Cancel jobs, and return the ids of those that did not complete, by the identity of the submission."""
    cancelled: dict[str, str] = {}
    semaphore = asyncio.Semaphore(_CANCELS_IN_FLIGHT)
    async with credentials.get_client("async") as client:

        async def bounded(record: JobRecord) -> None:
            async with semaphore:
                try:
                    if job_id := await _cancel(client, record, logger):
                        cancelled[record.submission_id] = job_id
                except CancelUnsupportedError as error:
                    logger.warning("%s", error)
                except NoukaiError as error:
                    logger.warning("A Noukai job of %s could not be cancelled: %s", record.flow, error)

        await asyncio.gather(*(bounded(record) for record in records))
    return cancelled


async def _cancel(client: AsyncNoukai, record: JobRecord, logger: LoggerOrAdapter) -> str | None:
    """Cancel a job; where a killed process left only the identity of a submission, look for its job first."""
    flow = client.flow(record.flow)
    if record.job_id:
        job: AsyncJob | None = flow.attach(record.job_id, submitted_at=record.last_sent_at)
    else:
        job = await flow.find(record.submission)
    if job is None:
        return None
    status = await job.status()
    if not status.finished:
        await job.cancel()
        logger.info("Noukai job %s of %s: cancelled with the flow run", job.id, job.flow)
        # A job that has ended by itself takes no cancel, and a rerun shall have what it completed with.
        with suppress(NoukaiError):
            status = await job.status()
    if status.state == JobState.COMPLETED:
        return None
    try:
        await mark_ended(replace(record, job_id=job.id))
    except Exception as error:
        logger.warning("The end of Noukai job %s could not be noted in Prefect: %s", job.id, error)
    return job.id
