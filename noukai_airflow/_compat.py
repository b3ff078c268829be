"""What differs between Airflow versions and is not in Airflow's own compatibility provider."""

from __future__ import annotations

from importlib.metadata import version

try:
    from airflow.sdk.exceptions import AirflowTaskTerminated, TaskDeferralError, TaskDeferralTimeout
except ImportError:  # before Airflow 3.2
    from airflow.exceptions import (  # type: ignore[no-redef]
        AirflowTaskTerminated,
        TaskDeferralError,
        TaskDeferralTimeout,
    )

_AIRFLOW = tuple(int(part) for part in version("apache-airflow-core").split(".")[:2])

NOTIFIES_TRIGGERS = _AIRFLOW >= (3, 3)
"""Whether Airflow calls a trigger's `on_kill` when a user ends its task."""

ON_KILL_MEANS_USER = _AIRFLOW >= (3, 4)
"""Whether only a user's act leads to `on_kill`. Airflow 3.3 also calls it when a trigger moves."""

CLEAR_DISCARDS_STATE = _AIRFLOW >= (3, 4)
"""Whether a clear discards the task's state store, unless the user keeps it."""

RESUMES_SAFELY = _AIRFLOW >= (3, 4)
"""Whether the scheduler distinguishes the end of a deferring process from that of the resumed task."""

HAS_REGIONS = _AIRFLOW >= (3, 4)
"""Whether a task instance is identified by its region as well: the iterations of a loop."""

DEFERRAL_FAILED = "__fail__"
"""The method with which Airflow resumes a task whose trigger is lost, or did not end in time."""

__all__ = [
    "CLEAR_DISCARDS_STATE",
    "DEFERRAL_FAILED",
    "HAS_REGIONS",
    "NOTIFIES_TRIGGERS",
    "ON_KILL_MEANS_USER",
    "RESUMES_SAFELY",
    "AirflowTaskTerminated",
    "TaskDeferralError",
    "TaskDeferralTimeout",
]
