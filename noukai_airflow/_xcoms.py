"""The XComs that a Noukai task pushes in addition to its return value."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

    from noukai_core import Job, JobStatus

log = logging.getLogger(__name__)

JOB_ID = "job_id"
JOB_URL = "job_url"
JOB_STATUS = "job_status"


def task_instance_of(context: Context) -> RuntimeTaskInstanceProtocol:
    """Return the running task, which is optional in Airflow's types."""
    return cast("dict[str, Any]", context)["ti"]  # type: ignore[no-any-return]


def status_summary(status: JobStatus) -> dict[str, Any]:
    """Return the XCom `job_status` of a job that has ended."""
    return {
        "state": str(status.state),
        "created_at": status.created_at,
        "started_at": status.started_at,
        "completed_at": status.completed_at,
    }


def costs(job: Job) -> dict[str, Any]:
    """Return the tokens and the cost of a job; nothing if its trace is not available."""
    from noukai_core import NoukaiError

    try:
        trace = job.trace()
    except NoukaiError as error:  # some servers do not show traces to API keys
        log.info("Noukai job %s of %s: trace not available: %s", job.id, job.flow, error)
        return {}
    cost = trace.cost_usd
    return {"total_tokens": trace.total_tokens, "cost_usd": None if cost is None else str(cost)}
