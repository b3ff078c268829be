"""Events about jobs, for automations."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from prefect.events import emit_event

from noukai_core import JobStatus, one_line
from noukai_prefect._run_context import RunContext


def emit_job_event(
    run: RunContext, what: str, flow: str, job_id: str, payload: Mapping[str, Any] | None = None
) -> None:
    """Emit an event about a job of a flow run or task run.

    Args:
        run: Where the code runs. Outside a run, nothing is emitted.
        what: `submitted`, `completed`, `failed`, `cancelled` or `left-running`; the event's name is
            `noukai.job.` and this word.
        flow: The Noukai flow.
        job_id: The job.
        payload: The event's payload. Values that are `None` are left out.
    """
    if run.scope is None:
        return
    emit_event(
        f"noukai.job.{what}",
        resource={
            "prefect.resource.id": f"noukai.job.{job_id}",
            "prefect.resource.name": job_id,
            "noukai.flow": flow,
        },
        payload={name: value for name, value in (payload or {}).items() if value is not None},
    )


def outcome_payload(
    status: JobStatus | None,
    *,
    url: str | None,
    seconds: float | None = None,
    tokens: int | None = None,
    cost_usd: Decimal | None = None,
    failed_step: str | None = None,
) -> dict[str, Any]:
    """Return the payload of an event about a job that ended."""
    return {
        "state": str(status.state) if status else None,
        "error": one_line(status.error) if status and status.error else None,
        "failed_step": failed_step,
        "seconds": None if seconds is None else round(seconds, 1),
        "tokens": tokens,
        "cost_usd": None if cost_usd is None else str(cost_usd),
        "url": url,
    }
