"""The Noukai job client that the Airflow provider and the Prefect integration share.

The names here are the public ones. They are loaded when they are first used, so that a DAG file that only
names an operator loads neither httpx nor pydantic through this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noukai_core._async_batch import AsyncJobBatch
    from noukai_core._blocking_batch import JobBatch
    from noukai_core._options import ClientArguments
    from noukai_core._text import one_line
    from noukai_core._validation import ApiKey
    from noukai_core.async_client import AsyncFlow, AsyncJob, AsyncNoukai
    from noukai_core.batch import (
        BatchLedger,
        JobInput,
        JobOutcome,
        LedgerEntry,
        MemoryLedger,
        OutcomeState,
    )
    from noukai_core.cancellation import CancelOutcome, acancel_job, cancel_job
    from noukai_core.client import Flow, Job, Noukai
    from noukai_core.errors import (
        APIError,
        AuthenticationError,
        BadRequestError,
        CancelUnsupportedError,
        CertificateError,
        ClientClosedError,
        ConnectionPoolTimeoutError,
        FlowNotFoundError,
        InsufficientCreditsError,
        InvalidInputError,
        InvalidResponseError,
        JobCancelledError,
        JobError,
        JobFailedError,
        JobNotFoundError,
        JobOutputInvalidError,
        JobTimeoutError,
        ModelKeyRejectedError,
        NotSubmittedError,
        NoukaiError,
        PermanentError,
        PermissionDeniedError,
        RateLimitError,
        RedirectError,
        ResponseTooLargeError,
        SubmissionUnknownError,
        TransientError,
    )
    from noukai_core.job_request import JobRequest
    from noukai_core.models import (
        ExecuteResult,
        JobAccepted,
        JobState,
        JobStatus,
        KeyInfo,
        RunTrace,
        TraceStep,
    )
    from noukai_core.run_url import RunUrlTemplate
    from noukai_core.runs import EndedRuns, FlowRun, RunsCursor
    from noukai_core.submission import Submission, SubmissionRecord

_MODULES = {
    "_async_batch": ("AsyncJobBatch",),
    "_blocking_batch": ("JobBatch",),
    "batch": ("BatchLedger", "JobInput", "JobOutcome", "LedgerEntry", "MemoryLedger", "OutcomeState"),
    "async_client": ("AsyncFlow", "AsyncJob", "AsyncNoukai"),
    "cancellation": ("CancelOutcome", "acancel_job", "cancel_job"),
    "client": ("Flow", "Job", "Noukai"),
    "errors": (
        "APIError",
        "PermissionDeniedError",
        "ResponseTooLargeError",
        "AuthenticationError",
        "BadRequestError",
        "CancelUnsupportedError",
        "CertificateError",
        "ClientClosedError",
        "ConnectionPoolTimeoutError",
        "InsufficientCreditsError",
        "FlowNotFoundError",
        "InvalidInputError",
        "JobCancelledError",
        "JobError",
        "JobFailedError",
        "JobNotFoundError",
        "JobOutputInvalidError",
        "JobTimeoutError",
        "InvalidResponseError",
        "ModelKeyRejectedError",
        "NotSubmittedError",
        "NoukaiError",
        "RateLimitError",
        "RedirectError",
        "PermanentError",
        "SubmissionUnknownError",
        "TransientError",
    ),
    "_options": ("ClientArguments",),
    "_text": ("one_line",),
    "_validation": ("ApiKey",),
    "models": ("ExecuteResult", "JobAccepted", "JobState", "JobStatus", "KeyInfo", "RunTrace", "TraceStep"),
    "job_request": ("JobRequest",),
    "run_url": ("RunUrlTemplate",),
    "runs": ("EndedRuns", "FlowRun", "RunsCursor"),
    "submission": ("Submission", "SubmissionRecord"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "APIError",
    "ApiKey",
    "AsyncFlow",
    "AsyncJob",
    "AsyncJobBatch",
    "AsyncNoukai",
    "AuthenticationError",
    "BadRequestError",
    "BatchLedger",
    "CancelOutcome",
    "CancelUnsupportedError",
    "CertificateError",
    "ClientArguments",
    "ClientClosedError",
    "ConnectionPoolTimeoutError",
    "EndedRuns",
    "ExecuteResult",
    "Flow",
    "FlowNotFoundError",
    "FlowRun",
    "InsufficientCreditsError",
    "InvalidInputError",
    "InvalidResponseError",
    "Job",
    "JobAccepted",
    "JobBatch",
    "JobCancelledError",
    "JobError",
    "JobFailedError",
    "JobInput",
    "JobNotFoundError",
    "JobOutcome",
    "JobOutputInvalidError",
    "JobRequest",
    "JobState",
    "JobStatus",
    "JobTimeoutError",
    "KeyInfo",
    "LedgerEntry",
    "MemoryLedger",
    "ModelKeyRejectedError",
    "NotSubmittedError",
    "Noukai",
    "NoukaiError",
    "OutcomeState",
    "PermanentError",
    "PermissionDeniedError",
    "RateLimitError",
    "RedirectError",
    "ResponseTooLargeError",
    "RunTrace",
    "RunUrlTemplate",
    "RunsCursor",
    "Submission",
    "SubmissionRecord",
    "SubmissionUnknownError",
    "TraceStep",
    "TransientError",
    "acancel_job",
    "cancel_job",
    "one_line",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
