"""The exceptions of Noukai tasks, all of which derive from `AirflowException`.

NoukaiException                         retries apply, unless stated otherwise
├── NoukaiJobFailedException            the job failed; a retry submits a new one
│   └── NoukaiSensorJobFailedException  the job of a sensor failed; never retried
├── NoukaiJobOutputInvalidException     the output is not of the `output_type`; a retry submits a new job
├── NoukaiJobCancelledException         the job was cancelled on the Noukai side; never retried
├── NoukaiJobCompletedException         the job of a sensor completed, which is not allowed; never retried
├── NoukaiBatchFailedException          too many jobs did not complete; a retry submits those not cancelled
├── NoukaiJobTimeoutException           the job did not end in time
├── NoukaiJobNotFoundException          the server does not know the job
├── NoukaiTransientException            transient errors lasted for too long
│   └── NoukaiRateLimitException        the server asked to slow down for too long
├── NoukaiSubmissionUnknownException    whether a job exists is unknown; a retry asks the server first
└── NoukaiPermanentException            permanently rejected, or invalid input; never retried
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

if TYPE_CHECKING:
    from noukai_core import NoukaiError, TraceStep

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger(__name__)


class NoukaiException(AirflowException):
    """The base of the exceptions of Noukai tasks.

    Attributes:
        job_id: The job, if the exception is about one.
        request_id: The id to quote to Noukai's support, if the server sent one.
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
    """The job failed.

    Attributes:
        step: The step that failed, if the trace of the run shows it.
    """

    def __init__(self, message: str, *, job_id: str | None = None, step: TraceStep | None = None) -> None:
        super().__init__(message, job_id=job_id)
        self.step = step


class NoukaiJobOutputInvalidException(NoukaiException):
    """The job completed, but its output is not of the `output_type`. A retry submits a new job.

    Attributes:
        fields: The fields that are missing or wrong, such as `comments.0.text`.
    """

    def __init__(self, message: str, *, job_id: str | None = None, fields: Sequence[str] = ()) -> None:
        super().__init__(message, job_id=job_id)
        self.fields = tuple(fields)


class NoukaiBatchFailedException(NoukaiException):
    """Too many jobs of a batch did not complete.

    A retry submits only those, without the ones that were cancelled on the Noukai side: these stay cancelled
    until the task is cleared.

    Attributes:
        counts: How many jobs ended in which state.
    """

    def __init__(self, message: str, *, counts: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.counts = dict(counts or {})


class NoukaiJobTimeoutException(NoukaiException):
    """The job did not end in time."""


class NoukaiJobNotFoundException(NoukaiException):
    """The server does not know the job."""


class NoukaiTransientException(NoukaiException):
    """Transient errors lasted for longer than the retry window."""


class NoukaiRateLimitException(NoukaiTransientException):
    """The server limited the rate of requests for longer than the retry window."""


class NoukaiSubmissionUnknownException(NoukaiException):
    """Whether a submission created a job is unknown. A retry asks the server first."""


class NoukaiJobCancelledException(NoukaiException, AirflowFailException):
    """The job was cancelled on the Noukai side, which is intended, so the task is not retried."""


class NoukaiJobCompletedException(NoukaiException, AirflowFailException):
    """The job of a sensor completed, which is none of its `allowed_states`. The state is final: no retry."""


class NoukaiPermanentException(NoukaiException, AirflowFailException):
    """The server rejected the request permanently, or an argument is invalid: a retry cannot succeed."""


class NoukaiSensorJobFailedException(NoukaiJobFailedException, AirflowFailException):
    """The job of a sensor failed. Its state is final, so the sensor is not retried."""


@contextmanager
def airflow_errors() -> Generator[None, None, None]:
    """Raise each error of the job client as the corresponding exception of this module."""
    from noukai_core import NoukaiError

    try:
        yield
    except NoukaiError as error:
        raise translate(error) from None


def without_frames(method: Callable[P, R]) -> Callable[P, R]:
    """Raise Noukai exceptions without the frames of this package, which only hide the reason from readers."""

    @wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except NoukaiException as error:
            log.debug("Noukai exception: raised at", exc_info=True)
            raise error.with_traceback(None) from None

    return wrapper


def permanent_if_invalid(constructor: Callable[P, None]) -> Callable[P, None]:
    """Let a constructor raise an `InvalidInputError` that Airflow does not retry.

    Airflow calls the constructor when it parses the DAG, but that of a mapped task in each of its tries.
    """

    @wraps(constructor)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            constructor(*args, **kwargs)
        except ValueError as error:
            from noukai_core import InvalidInputError

            if not isinstance(error, InvalidInputError):
                raise
            from noukai_airflow._invalid_argument import InvalidArgumentError

            raise InvalidArgumentError(str(error)) from None

    return wrapper


def translate(error: NoukaiError) -> NoukaiException:
    """Return the exception for an error of the job client."""
    import noukai_core as core

    message = str(error)
    match error:
        case core.JobFailedError():
            return NoukaiJobFailedException(message, job_id=error.job_id)
        case core.JobCancelledError():
            return NoukaiJobCancelledException(message, job_id=error.job_id)
        case core.JobOutputInvalidError():
            return NoukaiJobOutputInvalidException(message, job_id=error.job_id, fields=error.fields)
        case core.JobTimeoutError():
            return NoukaiJobTimeoutException(message, job_id=error.job_id)
        case core.SubmissionUnknownError():
            return NoukaiSubmissionUnknownException(message)
        case core.InvalidInputError():
            return NoukaiPermanentException(message)
        case core.APIError():
            exception_type = _type_for(error)
            return exception_type(
                message, job_id=error.job_id, request_id=error.request_id, retry_after=error.retry_after
            )
        case _:
            return NoukaiException(message)


def _type_for(error: NoukaiError) -> type[NoukaiException]:
    import noukai_core as core

    if isinstance(error, core.PermanentError | core.ResponseTooLargeError):
        return NoukaiPermanentException
    if isinstance(error, core.JobNotFoundError):
        return NoukaiJobNotFoundException
    if isinstance(error, core.RateLimitError):
        return NoukaiRateLimitException
    return NoukaiTransientException
