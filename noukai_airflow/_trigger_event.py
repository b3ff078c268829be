"""What a trigger tells the task that it wakes: which job, and why.

Never a result, which would go through the database and the log.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, cast

_VERSION = 1


class Reason(StrEnum):
    """Why a trigger ended."""

    FINISHED = "finished"
    DEADLINE = "deadline"
    REFUSED = "refused"
    NOT_FOUND = "not_found"
    UNAVAILABLE = "unavailable"
    ERROR = "error"


_REASONS = frozenset(reason.value for reason in Reason)


@dataclass(frozen=True)
class JobEvent:
    """The payload of a trigger's event.

    Attributes:
        job_id: The job.
        reason: Why the trigger ended.
        state: The job's state as last seen, or `None` when it was never seen.
    """

    job_id: str
    reason: Reason
    state: str | None = None

    def payload(self) -> dict[str, Any]:
        """Return it in the form that goes through Airflow: an enum's member would keep its class there."""
        state = None if self.state is None else str(self.state)
        return {"version": _VERSION, **asdict(self), "reason": self.reason.value, "state": state}

    @classmethod
    def read(cls, event: object) -> JobEvent | None:
        """Read what Airflow hands over.

        `None` when it makes no sense: then only the server can tell how the job is.
        """
        if not isinstance(event, dict):
            return None
        reported = cast("dict[str, Any]", event)
        job_id, reason, state = reported.get("job_id"), reported.get("reason"), reported.get("state")
        if not isinstance(job_id, str) or not job_id or not isinstance(reason, str) or reason not in _REASONS:
            return None
        return cls(job_id, Reason(reason), state if isinstance(state, str) else None)

    @classmethod
    def about(cls, job_id: str, event: JobEvent | None) -> JobEvent | None:
        """Return the event, or one that says to wait on when it is about another job.

        On SQLite the ids of triggers are used again. So after a clear, Airflow may take the trigger of the
        old job for the one of the new job, and wake the task with the old one's event.
        """
        if event is None or event.job_id == job_id:
            return event
        return cls(job_id, Reason.UNAVAILABLE)
