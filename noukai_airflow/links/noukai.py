"""The link from a task to its job's page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import attrs
from airflow.sdk import BaseOperatorLink

from noukai_airflow._xcoms import JOB_URL

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import RuntimeTaskInstanceProtocol, TaskInstanceKey


@attrs.define()
class NoukaiJobLink(BaseOperatorLink):
    """Opens the job's page. Shown from the submission on, if the connection has a template for the URL."""

    name = "Noukai job"  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the URL of the task's job, or else the one that the task has pushed.

        Airflow calls this at the end of each segment of a task, even in a process that has no job. The URL
        that the task has pushed must not be lost then.
        """
        from airflow.providers.common.compat.sdk import XCom

        page: str | None = getattr(operator, "job_page", None)
        if page is not None:
            return page
        url: Any = XCom.get_value(key=JOB_URL, ti_key=cast("Any", ti_key))
        return url or ""


def push_page(task_instance: RuntimeTaskInstanceProtocol, url: str) -> None:
    """Push the URL of the job's page, and show the link from now on."""
    task_instance.xcom_push(JOB_URL, url)
    # Airflow itself does this only when the task ends or defers.
    task_instance.xcom_push(NoukaiJobLink().xcom_key, url)
