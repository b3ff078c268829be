"""The Noukai job client that the Airflow provider and the Prefect integration share.

The names here are the public ones. They are loaded when they are first used, so that a DAG file that only
names an operator loads neither httpx nor pydantic through this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aio import AsyncFlow, AsyncJob, AsyncNoukai
    from .client import Flow, Job, Noukai
    from .errors import (
        AccessDenied,
        AnswerTooLarge,
        APIError,
        AuthenticationFailed,
        BadRequest,
        CancelUnsupported,
        CreditsExhausted,
        FlowNotFound,
        InvalidInput,
        JobCancelled,
        JobError,
        JobFailed,
        JobNotFound,
        JobWaitTimeout,
        MalformedAnswer,
        ModelKeyRejected,
        NoukaiError,
        RateLimited,
        Redirected,
        Refused,
        SubmissionUnknown,
        Unavailable,
    )
    from .inputs import ApiKey
    from .models import (
        ExecuteResult,
        JobAccepted,
        JobState,
        JobStatus,
        KeyInfo,
        RunTrace,
        TraceStep,
    )
    from .submission import Submission

_MODULES = {
    "aio": ("AsyncFlow", "AsyncJob", "AsyncNoukai"),
    "client": ("Flow", "Job", "Noukai"),
    "errors": (
        "APIError",
        "AccessDenied",
        "AnswerTooLarge",
        "AuthenticationFailed",
        "BadRequest",
        "CancelUnsupported",
        "CreditsExhausted",
        "FlowNotFound",
        "InvalidInput",
        "JobCancelled",
        "JobError",
        "JobFailed",
        "JobNotFound",
        "JobWaitTimeout",
        "MalformedAnswer",
        "ModelKeyRejected",
        "NoukaiError",
        "RateLimited",
        "Redirected",
        "Refused",
        "SubmissionUnknown",
        "Unavailable",
    ),
    "inputs": ("ApiKey",),
    "models": ("ExecuteResult", "JobAccepted", "JobState", "JobStatus", "KeyInfo", "RunTrace", "TraceStep"),
    "submission": ("Submission",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "APIError",
    "AccessDenied",
    "AnswerTooLarge",
    "ApiKey",
    "AsyncFlow",
    "AsyncJob",
    "AsyncNoukai",
    "AuthenticationFailed",
    "BadRequest",
    "CancelUnsupported",
    "CreditsExhausted",
    "ExecuteResult",
    "Flow",
    "FlowNotFound",
    "InvalidInput",
    "Job",
    "JobAccepted",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "JobNotFound",
    "JobState",
    "JobStatus",
    "JobWaitTimeout",
    "KeyInfo",
    "MalformedAnswer",
    "ModelKeyRejected",
    "Noukai",
    "NoukaiError",
    "RateLimited",
    "Redirected",
    "Refused",
    "RunTrace",
    "Submission",
    "SubmissionUnknown",
    "TraceStep",
    "Unavailable",
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
