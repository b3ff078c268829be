"""Flow hooks that find the jobs of a run, also when the run's own process is gone.

Put them on a flow: `@flow(on_cancellation=[cancel_noukai_jobs], on_crashed=[keep_noukai_jobs])`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger

from noukai_core import AsyncNoukai, CancelUnsupported, JobState, NoukaiError

from .batch_record import unfinished_jobs
from .bridge import run_blocking
from .credentials import NoukaiCredentials
from .records import JobRecord, mark_ended, read_records

if TYPE_CHECKING:
    from .context import LoggerOrAdapter

_CANCELS_IN_FLIGHT = 32


def cancel_noukai_jobs(
    flow: Flow[..., Any], flow_run: FlowRun, state: State[Any], *, credentials: str = "default"
) -> None:
    """Cancel every job of a flow run that a person cancelled, for `on_cancellation`.

    The tasks cancel their own jobs; this is for what they could not: a process that was killed before it had
    done so. A job that has ended is not affected.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: The state that the run is in.
        credentials: The name of the `NoukaiCredentials` block; bind another one with `functools.partial`.
    """
    run_blocking(_cancel_all(flow_run.id, credentials, flow_run_logger(flow_run, flow)))


def keep_noukai_jobs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Say in the log of a crashed flow run which of its jobs go on, for `on_crashed`.

    A retry of the run attaches to them.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: The state that the run is in.
    """
    logger = flow_run_logger(flow_run, flow)
    for noukai_flow, job_id in run_blocking(_known_jobs(flow_run.id)):
        logger.warning(
            "Noukai job %s of %s is kept; a retry of this flow run attaches to it", job_id, noukai_flow
        )


async def _known_jobs(flow_run_id: UUID) -> list[tuple[str, str]]:
    """Return the jobs of a flow run whose bad end it has not seen, as pairs of a Noukai flow and a job id."""
    single = [(record.flow, record.job_id) for record in await _records(flow_run_id) if record.job_id]
    return single + await unfinished_jobs(flow_run_id)


async def _records(flow_run_id: UUID) -> list[JobRecord]:
    return [record for record in await read_records(flow_run_id) if not record.ended]


async def _cancel_all(flow_run_id: UUID, credentials: str, logger: LoggerOrAdapter) -> None:
    block: NoukaiCredentials = await NoukaiCredentials.aload(credentials)
    room = asyncio.Semaphore(_CANCELS_IN_FLIGHT)
    async with block.get_client("async") as client:

        async def bounded(record: JobRecord | None, flow: str, job_id: str | None) -> None:
            async with room:
                try:
                    await _cancel(client, record, flow, job_id, logger)
                except CancelUnsupported as error:
                    logger.warning("%s", error)
                except NoukaiError as error:
                    logger.warning("A Noukai job of %s could not be cancelled: %s", flow, error)

        single = [bounded(record, record.flow, record.job_id) for record in await _records(flow_run_id)]
        many = [bounded(None, flow, job_id) for flow, job_id in await unfinished_jobs(flow_run_id)]
        await asyncio.gather(*single, *many)


async def _cancel(
    client: AsyncNoukai, record: JobRecord | None, flow: str, job_id: str | None, logger: LoggerOrAdapter
) -> None:
    """Cancel a job; where a killed process left only the identity of a submission, look for its job first."""
    noukai_flow = client.flow(flow)
    job = noukai_flow.attach(job_id) if job_id else None
    if job is None and record is not None:
        job = await noukai_flow.find(record.submission)
    if job is None:
        return
    await job.cancel()
    state = (await job.status()).state
    logger.info("Noukai job %s of %s: cancelled with the flow run, now %s", job.id, job.flow, state)
    if record is not None and state != JobState.COMPLETED:
        await mark_ended(record)
