"""What a Noukai task raises, in Airflow's own terms: one tree under `AirflowException`.

NoukaiException                         retries apply, unless said otherwise
├── NoukaiJobFailedException            the job failed; a retry submits a new one
├── NoukaiJobCancelledException         somebody cancelled the job on the Noukai side; never retried
├── NoukaiJobTimeoutException           the job did not end in time
├── NoukaiJobNotFoundException          the server does not know the job
├── NoukaiTransientException          the service was not reached for too long
├── NoukaiSubmissionUnknownException    it is not known whether a job exists; a retry asks the server first
└── NoukaiPermanentException              refused for good, or bad input; never retried
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

if TYPE_CHECKING:
    from noukai_core import NoukaiError


class NoukaiException(AirflowException):
    """The base of everything that a Noukai task raises on purpose.

    Attributes:
        job_id: The job that it is about, when it is about one.
        request_id: What to quote to the Noukai support, when the server sent one.
        retry_after: How long the server asks to wait, in seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        job_id: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.request_id = request_id
        self.retry_after = retry_after


class NoukaiJobFailedException(NoukaiException):
    """The job ended as failed."""


class NoukaiJobTimeoutException(NoukaiException):
    """The job did not end in time."""


class NoukaiJobNotFoundException(NoukaiException):
    """The server does not know the job."""


class NoukaiTransientException(NoukaiException):
    """The service was not reached, or gave no sensible answer, for longer than is waited out."""


class NoukaiSubmissionUnknownException(NoukaiException):
    """It could not be settled whether a submission made a job; a retry asks the server first."""


class NoukaiJobCancelledException(NoukaiException, AirflowFailException):
    """Somebody cancelled the job on the Noukai side, on purpose: the task is not retried."""


class NoukaiPermanentException(NoukaiException, AirflowFailException):
    """The server refused for good, or an argument is wrong: a retry cannot help."""


class NoukaiSensorJobFailedException(NoukaiJobFailedException, AirflowFailException):
    """The job that a sensor waits for failed. It stays failed, so the sensor is not retried."""


@contextmanager
def airflow_errors() -> Generator[None, None, None]:
    """Raise what the job client raises as its counterpart in this module."""
    from noukai_core import NoukaiError

    try:
        yield
    except NoukaiError as error:
        raise translate(error) from error


def translate(error: NoukaiError) -> NoukaiException:
    """Return the counterpart of an error of the job client."""
    import noukai_core as core

    message = str(error)
    match error:
        case core.JobFailedError():
            return NoukaiJobFailedException(message, job_id=error.job_id)
        case core.JobCancelledError():
            return NoukaiJobCancelledException(message, job_id=error.job_id)
        case core.JobTimeoutError():
            return NoukaiJobTimeoutException(message, job_id=error.job_id)
        case core.SubmissionUnknownError():
            return NoukaiSubmissionUnknownException(message)
        case core.InvalidInputError():
            return NoukaiPermanentException(message)
        case core.APIError():
            kind = _kind_of(error)
            return kind(
                message, job_id=error.job_id, request_id=error.request_id, retry_after=error.retry_after
            )
        case _:
            return NoukaiException(message)


def _kind_of(error: NoukaiError) -> type[NoukaiException]:
    import noukai_core as core

    if isinstance(error, core.PermanentError | core.ResponseTooLargeError):
        return NoukaiPermanentException
    if isinstance(error, core.JobNotFoundError):
        return NoukaiJobNotFoundException
    return NoukaiTransientException
