"""Names that moved between Airflow versions and are not in Airflow's own compatibility provider."""

from __future__ import annotations

try:
    from airflow.sdk.exceptions import AirflowTaskTerminated, TaskDeferralError, TaskDeferralTimeout
except ImportError:  # before Airflow 3.2
    from airflow.exceptions import (  # type: ignore[no-redef]
        AirflowTaskTerminated,
        TaskDeferralError,
        TaskDeferralTimeout,
    )

__all__ = ["AirflowTaskTerminated", "TaskDeferralError", "TaskDeferralTimeout"]
