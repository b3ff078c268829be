"""Everything that can go wrong, in one tree.

    NoukaiError
    ├── InvalidInput              an argument is wrong; nothing was sent (also a ValueError)
    ├── APIError                  the server refused, was not reached, or answered nonsense
    │   ├── Refused               for good: sending the same again cannot help
    │   │   ├── BadRequest            400, 413, 422
    │   │   ├── AuthenticationFailed  401
    │   │   ├── CreditsExhausted      402
    │   │   ├── AccessDenied          403
    │   │   ├── FlowNotFound          there is no such flow
    │   │   ├── ModelKeyRejected      the model provider refused the key that the flow uses
    │   │   └── CancelUnsupported     this server has no way to cancel a job
    │   ├── JobNotFound           the server does not know the job (any more)
    │   ├── Unavailable           a passing fault: 408, 425, 429, 5xx, no connection, no answer
    │   │   └── RateLimited           429
    │   └── MalformedAnswer       an answer that makes no sense
    │       ├── Redirected            a redirect, which is never followed
    │       └── AnswerTooLarge        a body over the cap
    ├── SubmissionUnknown         whether a submission made a job could not be settled in time
    └── JobError                  about a job that exists
        ├── JobFailed
        ├── JobCancelled
        └── JobWaitTimeout        the deadline of a wait passed (also a TimeoutError)

Every error can be pickled, and none of them holds a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from .models import JobStatus
    from .submission import Submission


class NoukaiError(Exception):
    """The base of every error that this package raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[NoukaiError], args: tuple[Any, ...], attributes: dict[str, Any]) -> NoukaiError:
    error = kind.__new__(kind, *args)
    error.args = args  # an OSError, as JobWaitTimeout is one, does not take them from __new__
    error.__dict__.update(attributes)
    return error


class InvalidInput(NoukaiError, ValueError):
    """An argument is wrong. Nothing was sent."""


class APIError(NoukaiError):
    """A request did not get the answer that it was made for.

    Attributes:
        status_code: The HTTP status, or ``None`` when no answer came.
        code: The server's own code in upper case, such as ``FLOW_NOT_FOUND``, when it sent one.
        request_id: What to quote to the Noukai support, when the server sent one.
        job_id: The job that the request was about, when it was about one.
        retry_after: How long the server asks to wait, in seconds.
        passing: Whether the same request may succeed later.
        never_processed: Whether it is certain that the server did not act on the request.
    """

    passing: ClassVar[bool] = False

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


class Refused(APIError):
    """The server refused for good: sending the same request again cannot help."""


class BadRequest(Refused):
    """The server found the request itself wrong (400, 413, 422)."""


class AuthenticationFailed(Refused):
    """The API key is missing, wrong or revoked (401)."""


class CreditsExhausted(Refused):
    """The organisation has no credits left (402)."""


class AccessDenied(Refused):
    """The key may not do this (403)."""


class FlowNotFound(Refused):
    """There is no such flow, or not in this version."""


class ModelKeyRejected(Refused):
    """The model provider refused the key that the flow was set up with."""


class CancelUnsupported(Refused):
    """This server has no route to cancel a job."""


class JobNotFound(APIError):
    """The server does not know the job, and too much time has passed for it to turn up."""


class Unavailable(APIError):
    """The service was not reached, was overloaded or failed: a fault that passes."""

    passing = True


class RateLimited(Unavailable):
    """Too many requests (429)."""


class MalformedAnswer(APIError):
    """The answer is not what the API is known to send."""

    passing = True


class Redirected(MalformedAnswer):
    """The server pointed elsewhere. A redirect is never followed: it would carry the key along."""


class AnswerTooLarge(MalformedAnswer):
    """The answer is larger than ``max_answer_bytes``."""

    passing = False


class SubmissionUnknown(NoukaiError):
    """It could not be settled whether a submission made a job, so nothing more was sent.

    Submitting again with the same ``submission`` asks the server first, unless the look-up is off.

    Attributes:
        submission: The identity of the submission.
    """

    def __init__(self, message: str, *, submission: Submission) -> None:
        super().__init__(message)
        self.submission = submission


class JobError(NoukaiError):
    """A job did not end well, or not in time.

    Attributes:
        job_id: The job.
        status: What was last known of it, or ``None`` when it was never seen.
    """

    def __init__(self, message: str, *, job_id: str, status: JobStatus | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.status = status


class JobFailed(JobError):
    """The job ended as ``failed``."""


class JobCancelled(JobError):
    """The job was cancelled on the Noukai side."""


class JobWaitTimeout(JobError, TimeoutError):
    """The deadline of a wait passed. The job itself was left alone and may still be running."""
