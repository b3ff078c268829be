"""The XComs that a Noukai task pushes in addition to its return value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

JOB_ID = "job_id"
JOB_URL = "job_url"
JOB_STATUS = "job_status"
BATCH_ID = "batch_id"
BATCH_STATUS = "batch_status"
BATCH_SESSIONS = "batch_sessions"
"""For the API server: the sessions in which jobs of a batch may be running, while its task is on a worker."""


def task_instance_of(context: Context) -> RuntimeTaskInstanceProtocol:
    """Return the running task, which is optional in Airflow's types."""
    return cast("dict[str, Any]", context)["ti"]  # type: ignore[no-any-return]
