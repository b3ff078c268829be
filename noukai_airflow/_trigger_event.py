"""The event with which a trigger resumes its task: the job, and why the trigger ended.

It never carries a result, which would pass through the database and the log.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, cast

_VERSION = 1


class Reason(StrEnum):
    """Why a trigger ended."""

    FINISHED = "finished"
    TIMED_OUT = "timed_out"
    NOT_FOUND = "not_found"
    RESPONSE_TOO_LARGE = "response_too_large"
    PERMANENT_ERROR = "permanent_error"
    TRANSIENT_ERROR = "transient_error"
    UNEXPECTED_ERROR = "unexpected_error"


_REASONS = frozenset(reason.value for reason in Reason)


@dataclass(frozen=True)
class JobEvent:
    """The payload of a trigger's event.

    Attributes:
        job_id: The job.
        reason: Why the trigger ended.
        state: The last known state of the job, or `None` if no poll succeeded.
        seen_at: When the trigger ended its wait, in seconds since the epoch.
        logged_steps: How many steps of the job were logged, if they are followed.
    """

    job_id: str
    reason: Reason
    state: str | None = None
    seen_at: float | None = None
    logged_steps: int = 0

    def payload(self) -> dict[str, Any]:
        """Return the event as plain text values: Airflow would store an enum member with its class."""
        state = None if self.state is None else str(self.state)
        return {"version": _VERSION, **asdict(self), "reason": self.reason.value, "state": state}

    @classmethod
    def read(cls, event: object) -> JobEvent | None:
        """Read the event that Airflow passes to the task.

        Returns:
            The event, or `None` if it is malformed: then only the server knows the state of the job.
        """
        if not isinstance(event, dict):
            return None
        fields = cast("dict[str, Any]", event)
        job_id, reason, state = fields.get("job_id"), fields.get("reason"), fields.get("state")
        if not isinstance(job_id, str) or not job_id or not isinstance(reason, str) or reason not in _REASONS:
            return None
        from noukai_core import one_line

        seen_at, logged_steps = fields.get("seen_at"), fields.get("logged_steps")
        return cls(
            job_id,
            Reason(reason),
            one_line(state, 100) if isinstance(state, str) else None,
            seen_at if isinstance(seen_at, float) and math.isfinite(seen_at) else None,
            logged_steps if isinstance(logged_steps, int) and logged_steps > 0 else 0,
        )

    @classmethod
    def for_job(cls, job_id: str, event: JobEvent | None) -> JobEvent | None:
        """Return the event; if it is about another job, return one that makes the task keep waiting.

        SQLite reuses the ids of triggers. After a clear, Airflow may therefore resume the task with the event
        of its previous job.
        """
        if event is None or event.job_id == job_id:
            return event
        return cls(job_id, Reason.TRANSIENT_ERROR)
