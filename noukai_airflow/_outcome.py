"""What is reported about a job: the XCom `job_status`, its cost in the log, and the exception of the task."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from noukai_airflow.exceptions import NoukaiJobCancelledException, NoukaiJobFailedException

if TYPE_CHECKING:
    from airflow.sdk import Context

    from noukai_core import Job, JobStatus, RunTrace

log = logging.getLogger(__name__)

# How often a change of the progress is written while a job runs, in seconds.
_PROGRESS_SECONDS = 10.0
_MAX_REASON = 2000


def about_job(phrase: str, job: Job, url: str | None) -> str:
    """Return the message of an exception about a job: first what happened, then where to see it."""
    see = f", see {url}" if url else ""
    return f"{phrase}{see} (Noukai job {job.id} of {job.flow})"


def status_summary(status: JobStatus, trace: RunTrace | None = None) -> dict[str, Any]:
    """Return the XCom `job_status`: one level of plain values, without those that are unknown."""
    summary: dict[str, Any] = {
        "state": str(status.state),
        "progress": status.progress_text,
        "error": _shown(status.error),
        "created_at": status.created_at,
        "started_at": status.started_at,
        "completed_at": status.completed_at,
    }
    if trace is not None:
        summary["total_tokens"] = trace.total_tokens
        summary["cost_usd"] = None if trace.cost_usd is None else str(trace.cost_usd)
        if (step := trace.failed_step) is not None:
            summary["failed_step"] = step.id
            summary["failed_step_model"] = step.model
            summary["failed_step_attempt"] = step.attempt
            summary["failed_step_error"] = _shown(step.error)
    return {name: value for name, value in summary.items() if value is not None}


class StatusUpdates:
    """Decides which changes of a running job are written to the XCom: each state, but not each progress.

    Args:
        state: The state that has been written already.
    """

    def __init__(self, state: str | None = None) -> None:
        self._state = state
        self._next_progress = 0.0

    def is_due(self, status: JobStatus) -> bool:
        """Return whether to write this status. The task writes that of a finished job, with its cost."""
        now = time.monotonic()
        if status.finished or (status.state == self._state and now < self._next_progress):
            return False
        if status.state == self._state and status.progress is None:
            return False
        self._state, self._next_progress = status.state, now + _PROGRESS_SECONDS
        return True


@dataclass(frozen=True)
class JobOutcome:
    """A job that has ended, and its trace if it is known.

    Attributes:
        job: The job.
        status: Its final status.
        url: The job's page.
        trace: How the run went, step by step.
        traced: Whether the run was to be traced, so that a trace without steps means that none was started.
    """

    job: Job
    status: JobStatus
    url: str | None
    trace: RunTrace | None
    traced: bool

    @classmethod
    def read(cls, job: Job, status: JobStatus, *, url: str | None, traced: bool) -> JobOutcome:
        """Read the trace of a traced or failed job, and log what the job cost."""
        from noukai_core import JobState

        trace = _read_trace(job) if traced or status.state == JobState.FAILED else None
        if trace is not None and (cost := _cost(trace)):
            log.info("Noukai job %s of %s: used %s", job.id, job.flow, cost)
        return cls(job, status, url, trace, traced)

    def summary(self) -> dict[str, Any]:
        """Return the XCom `job_status`."""
        return status_summary(self.status, self.trace)

    def describe_assets(self, context: Context) -> None:
        """Add the job and its cost to the events of the task's outlets, for consumers of the assets."""
        from airflow.sdk import Asset

        summary = self.summary()
        extra = {
            "noukai_flow": self.job.flow,
            "noukai_job_id": self.job.id,
            "noukai_job_url": self.url,
            "noukai_total_tokens": summary.get("total_tokens"),
            "noukai_cost_usd": summary.get("cost_usd"),
        }
        known = {name: value for name, value in extra.items() if value is not None}
        values = cast("dict[str, Any]", context)
        if "outlet_events" not in values or "task" not in values:
            return
        for outlet in values["task"].outlets:
            if isinstance(outlet, Asset):
                values["outlet_events"][outlet].extra.update(known)

    def exception(self) -> NoukaiJobFailedException | NoukaiJobCancelledException | None:
        """Return the exception for a job that did not complete."""
        from noukai_core import JobState

        match self.status.state:
            case JobState.FAILED:
                phrase = f"failed{self._after()}{self._where()}: {self._reason()}"
                step = None if self.trace is None else self.trace.failed_step
                return NoukaiJobFailedException(
                    about_job(phrase, self.job, self.url), job_id=self.job.id, step=step
                )
            case JobState.CANCELLED:
                phrase = f"cancelled{self._after()} on the Noukai side"
                return NoukaiJobCancelledException(about_job(phrase, self.job, self.url), job_id=self.job.id)
            case _:
                return None

    def _after(self) -> str:
        started = _parse_time(self.status.created_at) or self.job.submitted_at
        ended = _parse_time(self.status.completed_at)
        if started is None or ended is None or (started.tzinfo is None) != (ended.tzinfo is None):
            return ""
        return f" after {max(0.0, (ended - started).total_seconds()):.0f} s"

    def _where(self) -> str:
        if self.trace is None:
            return ""
        step = self.trace.failed_step
        if step is None:
            return ", before its first step" if self.traced and not self.trace.steps else ""
        return f" in step {step.label}"

    def _reason(self) -> str:
        reason = _shown(self.status.error)
        step = None if self.trace is None else self.trace.failed_step
        detail = None if step is None else _shown(step.error)
        if detail and reason and detail not in reason:
            return f"{reason} ({detail})"
        return reason or detail or "the server gave no reason"


def _read_trace(job: Job) -> RunTrace | None:
    from noukai_core import NoukaiError

    try:
        return job.trace()
    except NoukaiError as error:  # some servers do not show traces to API keys
        log.info("Noukai job %s of %s: trace not available: %s", job.id, job.flow, error)
        return None


def _cost(trace: RunTrace) -> str:
    tokens, cost = trace.total_tokens, trace.cost_usd
    parts = [None if tokens is None else f"{tokens} tokens", None if cost is None else f"${cost}"]
    return ", ".join(part for part in parts if part)


def _shown(text: str | None) -> str | None:
    from noukai_core import one_line

    return one_line(text, _MAX_REASON) or None if text else None


def _parse_time(text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None
