"""Cancel a job as well as possible, and log what came of it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from noukai_core.errors import JobNotFoundError, NoukaiError
from noukai_core.models import JobState, JobStatus

if TYPE_CHECKING:
    from noukai_core.async_client import AsyncJob
    from noukai_core.client import Job


class Logger(Protocol):
    """The part of a logger or logger adapter that is used."""

    def info(self, msg: str, /, *args: object) -> object:
        """Log what needs no attention."""
        ...

    def warning(self, msg: str, /, *args: object) -> object:
        """Log what may need attention."""
        ...


@dataclass(frozen=True)
class CancelOutcome:
    """What came of an attempt to cancel a job.

    Attributes:
        job_id: The job.
        flow: Its flow as `org/project/slug`.
        status: The job's status after the cancel, if it was polled.
        error: What failed, if something did: an error, or a text for the log.
        had_ended: Whether the server said that the job had already ended.
    """

    job_id: str
    flow: str
    status: JobStatus | None = None
    error: NoukaiError | str | None = None
    had_ended: bool = False

    @property
    def cancelled(self) -> bool:
        """Whether the server accepted the cancel, and no other end of the job is known."""
        return self.error is None and self.not_needed is None

    @property
    def not_needed(self) -> str | None:
        """Why there was nothing to cancel, if so: the job had already ended, or is unknown to the server."""
        if isinstance(self.error, JobNotFoundError):
            return "unknown to the server"
        if self.status is not None and self.status.finished and self.status.state != JobState.CANCELLED:
            return f"already {self.status.state}"
        # The poll may have reached a replica that does not know yet.
        if self.had_ended and (self.status is None or not self.status.finished):
            return "already ended"
        return None

    def log(self, reason: str, logger: Logger) -> bool:
        """Log the outcome in one line, and return `cancelled`. A job that may still be running is a warning.

        Args:
            reason: Why the job is cancelled.
            logger: Where to log.
        """
        if self.cancelled:
            logger.info("Noukai job %s of %s: cancelled (%s)", self.job_id, self.flow, reason)
        elif self.not_needed:
            logger.info("Noukai job %s of %s: not cancelled (%s)", self.job_id, self.flow, self.not_needed)
        else:
            logger.warning(
                "Noukai job %s of %s: cancel failed (%s; may still be running)",
                self.job_id,
                self.flow,
                self.error,
            )
        return self.cancelled


def cancel_job(job: Job, *, confirm: bool = True) -> CancelOutcome:
    """Cancel a job, and return what came of it. No error of the job client is raised.

    Args:
        job: The job.
        confirm: Whether to poll the job afterwards. A job that had already ended ignores a cancel, and only
            the poll shows it.
    """
    status: JobStatus | None = None
    try:
        job.cancel()
    except NoukaiError as error:
        return CancelOutcome(job.id, job.flow, error=error)
    if confirm:
        with suppress(NoukaiError):
            status = job.status()
    return CancelOutcome(job.id, job.flow, status, had_ended=job.had_ended)


async def acancel_job(job: AsyncJob, *, confirm: bool = True) -> CancelOutcome:
    """Cancel a job of an async client; see `cancel_job`."""
    status: JobStatus | None = None
    try:
        await job.cancel()
    except NoukaiError as error:
        return CancelOutcome(job.id, job.flow, error=error)
    if confirm:
        with suppress(NoukaiError):
            status = await job.status()
    return CancelOutcome(job.id, job.flow, status, had_ended=job.had_ended)
