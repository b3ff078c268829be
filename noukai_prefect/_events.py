"""Events about jobs, for automations."""

from __future__ import annotations

from typing import Any

from prefect.events import emit_event

from noukai_prefect._run_context import RunContext


def emit_job_event(run: RunContext, what: str, flow: str, job_id: str, **payload: Any) -> None:
    """Emit an event about a job of a flow run or task run.

    Args:
        run: Where the code runs. Outside a run, nothing is emitted.
        what: `submitted`, `completed`, `failed`, `cancelled` or `left-running`; the event's name is
            `noukai.job.` and this word.
        flow: The Noukai flow.
        job_id: The job.
        **payload: The event's payload.
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
        payload=payload,
    )
