"""Everything that can go wrong, in one tree.

    NoukaiError
    ├── InvalidInputError                  an argument is wrong; nothing was sent (also a ValueError)
    ├── APIError                           the server rejected the request, was not reached, or sent nonsense
    │   ├── PermanentError                 sending the same request again cannot help
    │   │   ├── BadRequestError            400, 413, 422
    │   │   ├── AuthenticationError        401
    │   │   ├── InsufficientCreditsError   402
    │   │   ├── PermissionDeniedError      403
    │   │   ├── FlowNotFoundError          there is no such flow
    │   │   ├── ModelKeyRejectedError      the model provider rejected the key that the flow uses
    │   │   ├── CertificateError           the server's TLS certificate is not trusted
    │   │   └── CancelUnsupportedError     this server has no way to cancel a job
    │   ├── JobNotFoundError               the server does not know the job (any more)
    │   ├── TransientError                 408, 425, 429, 5xx, no connection, no response, a gateway's 404
    │   │   ├── RateLimitError             429
    │   │   └── ConnectionPoolTimeoutError all connections of the client stayed busy; nothing was sent
    │   ├── InvalidResponseError           a response that makes no sense
    │   │   ├── RedirectError              a redirect, which is never followed
    │   │   └── ResponseTooLargeError      a response over the limit
    │   └── ClientClosedError              the client was closed before the request was sent
    ├── NotSubmittedError                  a batch was stopped before this input was submitted
    ├── SubmissionUnknownError             whether a submission made a job could not be determined
    └── JobError                           about a job that exists
        ├── JobFailedError
        ├── JobCancelledError
        ├── JobOutputInvalidError          the job completed, but its output is not of the type asked for
        └── JobTimeoutError                the deadline of a wait passed (also a TimeoutError)

Every error can be pickled, and none of them holds a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from noukai_core.models import JobStatus, TraceStep
    from noukai_core.submission import Submission


class NoukaiError(Exception):
    """The base of every error that this package raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[NoukaiError], args: tuple[Any, ...], attributes: dict[str, Any]) -> NoukaiError:
    error = kind.__new__(kind, *args)
    error.args = args  # an OSError, as JobTimeoutError is one, does not take them from __new__
    error.__dict__.update(attributes)
    return error


class InvalidInputError(NoukaiError, ValueError):
    """An argument is wrong. Nothing was sent."""


class APIError(NoukaiError):
    """A request did not get the response that it was made for.

    Attributes:
        status_code: The HTTP status, or `None` when there was no response.
        code: The server's own code in upper case, such as `FLOW_NOT_FOUND`, when it sent one.
        request_id: What to quote to the Noukai support, when the server sent one.
        job_id: The job that the request was about, when it was about one.
        retry_after: How long the server asks to wait, in seconds.
        retryable: Whether the same request may succeed later.
        never_processed: Whether it is certain that the server did not act on the request.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        job_id: str | None = None,
        retry_after: float | None = None,
        never_processed: bool = False,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.code = code
        self.request_id = request_id
        self.job_id = job_id
        self.retry_after = retry_after
        self.never_processed = never_processed


class PermanentError(APIError):
    """Sending the same request again cannot help."""


class BadRequestError(PermanentError):
    """The server found the request itself wrong (400, 413, 422)."""


class AuthenticationError(PermanentError):
    """The API key is missing, wrong or revoked (401)."""


class InsufficientCreditsError(PermanentError):
    """The organisation has no credits left (402)."""


class PermissionDeniedError(PermanentError):
    """The key may not do this (403)."""


class FlowNotFoundError(PermanentError):
    """There is no such flow, or not in this version."""


class ModelKeyRejectedError(PermanentError):
    """The model provider rejected the key that the flow was set up with."""


class CertificateError(PermanentError):
    """The server's TLS certificate is not trusted, so nothing was sent."""


class CancelUnsupportedError(PermanentError):
    """This server has no route to cancel a job."""


class JobNotFoundError(APIError):
    """The server does not know the job, and too much time has passed for it to turn up."""


class TransientError(APIError):
    """The service was not reached, was overloaded or failed; the same request may succeed later."""

    retryable = True


class RateLimitError(TransientError):
    """Too many requests (429)."""


class ConnectionPoolTimeoutError(TransientError):
    """All connections of this client stayed busy, so nothing was sent."""


class InvalidResponseError(APIError):
    """The response is not what the API is known to send."""

    retryable = True


class RedirectError(InvalidResponseError):
    """The server pointed elsewhere. A redirect is never followed: it would carry the key along."""


class ResponseTooLargeError(InvalidResponseError):
    """The response is larger than `max_response_bytes`."""

    retryable = False


class ClientClosedError(APIError):
    """The client was closed, so this request was not sent."""


class SubmissionUnknownError(NoukaiError):
    """Whether a submission made a job could not be determined, so nothing more was sent.

    Submitting again with the same `submission` asks the server first, unless the lookup is off.

    Attributes:
        submission: The identity of the submission.
    """

    def __init__(self, message: str, *, submission: Submission) -> None:
        super().__init__(message)
        self.submission = submission


class NotSubmittedError(NoukaiError):
    """A batch was stopped before this input was submitted, so there is no job."""


class JobError(NoukaiError):
    """A job did not end well, or not in time.

    Attributes:
        job_id: The job.
        status: Its last known status, or `None`.
    """

    def __init__(self, message: str, *, job_id: str, status: JobStatus | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.status = status


class JobFailedError(JobError):
    """The job ended as `failed`.

    Attributes:
        step: The step that failed, if the run's trace was read before the error was raised.
    """

    def __init__(
        self,
        message: str,
        *,
        job_id: str,
        status: JobStatus | None = None,
        step: TraceStep | None = None,
    ) -> None:
        super().__init__(message, job_id=job_id, status=status)
        self.step = step


class JobCancelledError(JobError):
    """The job was cancelled on the Noukai side."""


class JobOutputInvalidError(JobError):
    """The job completed, but its output is not of the type that was asked for.

    Attributes:
        fields: The fields that are missing or wrong, such as `comments.0.text`.
    """

    def __init__(
        self,
        message: str,
        *,
        job_id: str,
        status: JobStatus | None = None,
        fields: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, job_id=job_id, status=status)
        self.fields = fields


class JobTimeoutError(JobError, TimeoutError):
    """The deadline of a wait passed. The job was left running."""
