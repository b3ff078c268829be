"""Flow hooks that find the jobs of a run, even when the run's own process no longer exists.

Set them on a flow: `@flow(on_cancellation=[cancel_noukai_jobs], on_crashed=[log_resumable_noukai_jobs])`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger

from noukai_core import AsyncJob, AsyncNoukai, CancelOutcome, JobState, NoukaiError, acancel_job, one_line
from noukai_prefect._artifacts import with_subflows
from noukai_prefect._batch_record import StoredBatch, StoredLedger, read_batches
from noukai_prefect._batch_table import show_ended
from noukai_prefect._cancellation import CANCEL_CONCURRENCY, find_submitted
from noukai_prefect._job_artifact import job_markdown
from noukai_prefect._job_store import JobRecord, mark_ended, read_records
from noukai_prefect._signing import RecordSigner
from noukai_prefect._sync import run_blocking
from noukai_prefect.credentials import NoukaiCredentials, load_stored

if TYPE_CHECKING:
    from noukai_prefect._run_context import LoggerOrAdapter

_REASON = "the flow run was cancelled"


def cancel_noukai_jobs(
    flow: Flow[..., Any], flow_run: FlowRun, state: State[Any], *, credentials: str = "default"
) -> None:
    """Cancel the jobs of a flow run that a person cancelled, and of its subflows, for `on_cancellation`.

    The tasks cancel their own jobs. This hook is for a process that was killed before it had done so. A job
    that has ended is not affected. A credentials block is used only for records that were signed with its key
    by this flow run.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: The state of the run.
        credentials: The name of the `NoukaiCredentials` block for jobs that were not submitted with a stored
            block. Bind another name with `functools.partial`.
    """
    run_blocking(_cancel_all(flow_run, credentials, flow_run_logger(flow_run, flow)))


def log_resumable_noukai_jobs(
    flow: Flow[..., Any], flow_run: FlowRun, state: State[Any], *, credentials: str = "default"
) -> None:
    """Log the jobs of a crashed flow run that a retry attaches to, for `on_crashed`.

    These are the running ones, and single jobs that have completed; no request is made to tell them apart.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: The state of the run.
        credentials: The name of the `NoukaiCredentials` block for jobs that were not submitted with a stored
            block.
    """
    run_blocking(_log_all(flow_run, credentials, flow_run_logger(flow_run, flow)))


@dataclass
class _Stored:
    """What a flow run stored about the jobs of one credentials block, not verified."""

    singles: list[tuple[JobRecord, UUID]] = field(default_factory=list[tuple[JobRecord, UUID]])
    batches: list[StoredBatch] = field(default_factory=list[StoredBatch])

    def verify(self, block: NoukaiCredentials) -> tuple[_Verified, _Stored]:
        """Return the unfinished jobs that the run signed with the block's key, and what it did not sign."""
        verified, rejected = _Verified(), _Stored()
        for record, scope in self.singles:
            signer = RecordSigner(block.api_key, scope)
            if not record.verified_by(signer):
                rejected.singles.append((replace(record, ended=False), scope))
            elif not record.ended:
                verified.singles.append((record, signer))
        for batch in self.batches:
            signer = RecordSigner(block.api_key, batch.scope)
            if batch.entries(signer):
                verified.batches.append((batch, signer))
            if not batch.complete(signer):
                rejected.batches.append(batch)
        return verified, rejected

    def log_not_cancelled(self, logger: LoggerOrAdapter, why: str) -> None:
        """Log each job as not cancelled. Nothing here may be verified, so its text is not trusted."""
        for record, _ in self.singles:
            if not record.ended:
                _log_not_cancelled(record, why, logger)
        for batch in self.batches:
            logger.warning(
                "Noukai batch of %s jobs of %s: cancel failed (%s; some may still be running)",
                one_line(batch.size),
                one_line(batch.flow),
                why,
            )


@dataclass
class _Verified:
    """What a flow run signed, with who signs it."""

    singles: list[tuple[JobRecord, RecordSigner]] = field(
        default_factory=list[tuple[JobRecord, RecordSigner]]
    )
    batches: list[tuple[StoredBatch, RecordSigner]] = field(
        default_factory=list[tuple[StoredBatch, RecordSigner]]
    )

    def job_ids(self) -> Iterator[tuple[str, str]]:
        """Yield the jobs that were not seen to end, each with its flow."""
        for record, _ in self.singles:
            if record.job_id:
                yield record.job_id, record.flow
        for batch, signer in self.batches:
            for entry in batch.entries(signer).values():
                if entry.job_id is not None and entry.unfinished:
                    yield entry.job_id, batch.flow


def _log_not_cancelled(record: JobRecord, why: NoukaiError | str, logger: LoggerOrAdapter) -> None:
    flow = one_line(record.flow)
    if record.job_id:
        CancelOutcome(one_line(record.job_id), flow, error=why).log(_REASON, logger)
    else:
        logger.warning(
            "Noukai submission %s to %s: may be left running (%s)", one_line(record.submission_id), flow, why
        )


async def _stored_by_block(flow_run: FlowRun, default: str) -> dict[str, _Stored]:
    """Return what a flow run and its subflows stored, by the name of the credentials block."""
    scopes = await with_subflows(flow_run)
    stored: defaultdict[str, _Stored] = defaultdict(_Stored)
    for record, scope in await read_records(scopes):
        stored[record.credentials or default].singles.append((record, scope))
    for batch in await read_batches(scopes):
        stored[batch.credentials or default].batches.append(batch)
    return stored


async def _log_all(flow_run: FlowRun, default: str, logger: LoggerOrAdapter) -> None:
    for name, stored in (await _stored_by_block(flow_run, default)).items():
        try:
            block = await load_stored(name)
            verified, _ = stored.verify(block)
        except Exception as error:
            logger.warning("Noukai credentials block %s: not usable: %s", one_line(name), error)
            continue
        for job_id, of in verified.job_ids():
            logger.info(
                "Noukai job %s of %s: left running (a retry of this flow run attaches to it)", job_id, of
            )


async def _cancel_all(flow_run: FlowRun, default: str, logger: LoggerOrAdapter) -> None:
    """Cancel the jobs of a flow run, with one client for each credentials block."""
    for name, stored in (await _stored_by_block(flow_run, default)).items():
        # A broken block, or a fault of Prefect, must not keep the jobs of other blocks from being cancelled.
        try:
            block = await load_stored(name)
            verified, rejected = stored.verify(block)
            rejected.log_not_cancelled(logger, f"record not verified with credentials block {one_line(name)}")
            await _cancel_verified(block, verified, logger)
        except Exception as error:
            stored.log_not_cancelled(logger, f"credentials block {one_line(name)} cannot be used: {error}")


async def _cancel_verified(
    credentials: NoukaiCredentials,
    verified: _Verified,
    logger: LoggerOrAdapter,
) -> None:
    """Cancel jobs, and record which of them did not complete."""
    semaphore = asyncio.Semaphore(CANCEL_CONCURRENCY)
    async with credentials.get_client("async") as client:

        async def bounded(record: JobRecord, signer: RecordSigner) -> None:
            async with semaphore:
                try:
                    await _cancel(client, record, signer, credentials, logger)
                except NoukaiError as error:
                    _log_not_cancelled(record, error, logger)

        await asyncio.gather(*(bounded(*one) for one in verified.singles))
        for batch, signer in verified.batches:
            await _cancel_batch(client, batch, signer, logger)


async def _cancel_batch(
    client: AsyncNoukai, batch: StoredBatch, signer: RecordSigner, logger: LoggerOrAdapter
) -> None:
    """Cancel the jobs of a batch, even those of which a killed process recorded only the submission."""
    ledger = StoredLedger(batch, signer)
    jobs = client.flow(batch.flow).jobs((), ledger=ledger, batch_id=batch.slot)
    for outcome in await jobs.cancel(_REASON):
        outcome.log(_REASON, logger)
    try:
        await ledger.store()
        if (table := batch.table(signer)) is not None and (ended := ledger.ended()):
            await show_ended(table, ended)
    except Exception as error:
        logger.warning("Noukai batch of %s jobs of %s: table not written: %s", batch.size, batch.flow, error)


async def _cancel(
    client: AsyncNoukai,
    record: JobRecord,
    signer: RecordSigner,
    credentials: NoukaiCredentials,
    logger: LoggerOrAdapter,
) -> None:
    """Cancel a job, and record that.

    If a killed process recorded only the submission, its job is looked up first. A line names a submission
    whose job is not found.
    """
    flow = client.flow(record.flow)
    if record.job_id:
        job: AsyncJob | None = flow.attach(record.job_id, submitted_at=record.last_sent_at)
    else:
        job = await find_submitted(flow, record.submission, logger)
    if job is None:
        return
    status = await job.status()
    if not status.finished:
        outcome = await acancel_job(job)
        status = outcome.status or status
        if not outcome.log(_REASON, logger) and not status.finished:
            return  # a rerun asks what became of it
    if status.state == JobState.COMPLETED:
        return
    try:
        text = job_markdown(
            job.flow,
            job.id,
            page=credentials.page_of(job.flow, job.id),
            state=str(status.state if status.finished else JobState.CANCELLED),
            reason=status.error or _REASON,
            status=status,
        )
        await mark_ended(replace(record, job_id=job.id), signer, text)
    except Exception as error:
        logger.warning("Noukai job %s of %s: not recorded (%s)", job.id, job.flow, error)
