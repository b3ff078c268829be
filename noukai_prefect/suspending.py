"""Suspend a flow run until its job has ended, so that no process waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.flow_runs import asuspend_flow_run, suspend_flow_run

from noukai_core import JobNotFoundError, NoukaiError
from noukai_core.checks import check_job_id
from noukai_prefect._artifacts import with_subflows
from noukai_prefect._job_store import JobRecord, read_records
from noukai_prefect._run_context import RunContext
from noukai_prefect._signing import RecordSigner
from noukai_prefect.credentials import NoukaiCredentials, load_stored

_KEY = "noukai-job-"
_PAGE_SIZE = 200


async def asuspend_until_noukai_job(job_id: str, *, timeout: int | None = None) -> None:
    """Suspend the flow run, for async flows; see `suspend_until_noukai_job`."""
    await asuspend_flow_run(key=_key(job_id), timeout=timeout)


def suspend_until_noukai_job(job_id: str, *, timeout: int | None = None) -> None:
    """Suspend the flow run until one of its jobs has ended. No process waits for it meanwhile.

    The flow `noukai_prefect.flows.resume_noukai_runs`, deployed with a schedule, resumes the run. The run
    then starts again from its beginning: `submit_noukai_job` attaches to the job, this function does nothing
    the second time, and `wait_for_noukai_job` returns the output. Prefect suspends only the runs of
    deployments.

    Args:
        job_id: A job that this flow run has submitted.
        timeout: After how many seconds the suspended run fails; no limit by default. Its job is left running.

    Raises:
        InvalidInputError: `job_id` is no id of a job; the flow run is not suspended.
    """
    suspend: Any = suspend_flow_run
    # In an async flow, Prefect would otherwise return a coroutine, which nothing awaits.
    suspend(key=_key(job_id), timeout=timeout, _sync=True)


def _key(job_id: str) -> str:
    return f"{_KEY}{check_job_id(job_id)}"


async def resume_ended(run: RunContext, default: str) -> list[UUID]:
    """Resume the suspended flow runs whose job has ended, and return those that Prefect has resumed.

    Args:
        run: Where the code runs.
        default: The name of the credentials block for jobs that were not submitted with a stored one.
    """
    resumed: list[UUID] = []
    blocks: dict[str, NoukaiCredentials] = {}
    async for suspended, job_id in _suspended():
        try:
            state = await _ended(suspended, job_id, blocks, default)
            if state is None:
                continue
            async with get_client() as client:
                resumption = await client.resume_flow_run(suspended.id)
            if resumption.status is not SetStateStatus.ACCEPT:
                reason = getattr(resumption.details, "reason", None)
                raise _NotResumedError(f"Prefect: {reason or resumption.status.value}")
        except Exception as error:  # one run must not keep the others from being resumed
            run.logger().warning("Prefect flow run %s: not resumed (%s)", suspended.id, error)
            continue
        run.logger().info("Prefect flow run %s: resumed (Noukai job %s is %s)", suspended.id, job_id, state)
        resumed.append(suspended.id)
    return resumed


async def _suspended() -> AsyncIterator[tuple[FlowRun, str]]:
    """Yield the flow runs that are suspended until a job ends, each with its job."""
    wanted = FlowRunFilter(
        state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Suspended"])),
    )
    found: list[FlowRun] = []
    async with get_client() as client:
        while True:
            page = await client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE_SIZE, offset=len(found))
            found += page
            if len(page) < _PAGE_SIZE:
                break
    for flow_run in found:
        key = flow_run.state.state_details.pause_key if flow_run.state else None
        if key is not None and key.startswith(_KEY):
            yield flow_run, key.removeprefix(_KEY)


async def _ended(
    flow_run: FlowRun, job_id: str, blocks: dict[str, NoukaiCredentials], default: str
) -> str | None:
    """Return the state of a flow run's job if it has ended, or if the server does not know it any more."""
    record, block = await _record(flow_run, job_id, blocks, default)
    async with block.get_client("async") as client:
        job = client.flow(record.flow).attach(job_id, submitted_at=record.last_sent_at)
        try:
            status = await job.status()
        except JobNotFoundError:
            return "unknown"
    return str(status.state) if status.finished else None


async def _record(
    flow_run: FlowRun, job_id: str, blocks: dict[str, NoukaiCredentials], default: str
) -> tuple[JobRecord, NoukaiCredentials]:
    """Return the record of a job, and the credentials that submitted it. Other records are not used."""
    for record, scope in await read_records(await with_subflows(flow_run)):
        if record.job_id != job_id:
            continue
        name = record.credentials or default
        if name not in blocks:
            blocks[name] = await load_stored(name)
        if record.verified_by(RecordSigner(blocks[name].api_key, scope)):
            return record, blocks[name]
    raise _RecordError(f"it has no verified record of Noukai job {job_id}")


class _NotResumedError(NoukaiError):
    """Prefect's server did not accept that a flow run is resumed."""


class _RecordError(NoukaiError):
    """A flow run has no verified record of the job for which it is suspended."""
