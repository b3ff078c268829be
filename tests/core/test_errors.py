"""The errors as values: their tree, and what survives a trip to another process."""

from __future__ import annotations

import copy
import inspect
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

import noukai_core
from noukai_core import (
    APIError,
    ExecuteResult,
    InvalidInputError,
    JobError,
    JobState,
    JobStatus,
    NotSubmittedError,
    NoukaiError,
    Submission,
    SubmissionUnknownError,
    errors,
)

TREE = {
    "NoukaiError": "Exception",
    "InvalidInputError": "NoukaiError",
    "APIError": "NoukaiError",
    "PermanentError": "APIError",
    "BadRequestError": "PermanentError",
    "AuthenticationError": "PermanentError",
    "InsufficientCreditsError": "PermanentError",
    "PermissionDeniedError": "PermanentError",
    "FlowNotFoundError": "PermanentError",
    "ModelKeyRejectedError": "PermanentError",
    "CertificateError": "PermanentError",
    "CancelUnsupportedError": "PermanentError",
    "JobNotFoundError": "APIError",
    "TransientError": "APIError",
    "RateLimitError": "TransientError",
    "ConnectionPoolTimeoutError": "TransientError",
    "InvalidResponseError": "APIError",
    "RedirectError": "InvalidResponseError",
    "ResponseTooLargeError": "InvalidResponseError",
    "ClientClosedError": "APIError",
    "NotSubmittedError": "NoukaiError",
    "SubmissionUnknownError": "NoukaiError",
    "JobError": "NoukaiError",
    "JobFailedError": "JobError",
    "JobCancelledError": "JobError",
    "JobOutputInvalidError": "JobError",
    "JobTimeoutError": "JobError",
}
TRANSIENT = {
    "TransientError",
    "RateLimitError",
    "ConnectionPoolTimeoutError",
    "InvalidResponseError",
    "RedirectError",
}
KINDS = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, NoukaiError)]


def example(kind: type[NoukaiError]) -> NoukaiError:
    """An error of this kind with every attribute set."""
    if issubclass(kind, APIError):
        return kind(
            "Looking at job j-1: HTTP 503",
            status_code=503,
            code="OVERLOADED",
            request_id="req-1",
            job_id="j-1",
            retry_after=7.5,
        )
    if issubclass(kind, JobError):
        status = JobStatus(
            id="j-1", state=JobState.FAILED, error="why", result=ExecuteResult(output={"a": [1, None]})
        )
        return kind("Noukai job j-1 failed: why", job_id="j-1", status=status)
    if issubclass(kind, SubmissionUnknownError):
        return kind("unknown", submission=Submission(Submission.new().id, last_sent_at=datetime.now(UTC)))
    return kind("timeout is 0, but must be a number above 0")


def test_the_tree_is_the_documented_one() -> None:
    """The documentation shows every error of the package, with its base class."""
    assert {kind.__name__: kind.__bases__[0].__name__ for kind in KINDS} == TREE
    assert all(name in (errors.__doc__ or "") for name in TREE)
    assert all(getattr(noukai_core, name) is getattr(errors, name) for name in TREE)


def test_every_error_is_called_one() -> None:
    """Every class of the module ends in `Error`."""
    here = [kind for kind in vars(errors).values() if getattr(kind, "__module__", None) == errors.__name__]
    classes = [kind.__name__ for kind in here if isinstance(kind, type)]
    assert "NoukaiError" in classes
    assert [name for name in classes if not name.endswith("Error")] == []


def test_errors_are_also_what_python_calls_them() -> None:
    """Bad input is a ValueError and a wait that ran out a TimeoutError, for callers who catch those."""
    assert issubclass(noukai_core.InvalidInputError, ValueError)
    assert issubclass(noukai_core.JobTimeoutError, TimeoutError)
    assert not issubclass(noukai_core.TransientError, TimeoutError)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, APIError)])
def test_an_error_knows_whether_it_passes(kind: type[APIError]) -> None:
    """Errors that waiting may cure are distinguished from those that it cannot."""
    assert kind.retryable is (kind.__name__ in TRANSIENT)


def trips(error: NoukaiError) -> list[tuple[str, NoukaiError]]:
    pickled = [(f"pickle {number}", pickle.loads(pickle.dumps(error, number))) for number in range(2, 6)]
    return [*pickled, ("copy", copy.copy(error)), ("deep copy", copy.deepcopy(error))]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_the_trip_to_another_process(kind: type[NoukaiError]) -> None:
    """A pickled or copied error has its type, its message, its arguments and every attribute."""
    error = example(kind)
    for way, again in trips(error):
        assert type(again) is kind, way
        assert (str(again), again.args) == (str(error), error.args), way
        assert vars(again) == vars(error), way
        assert vars(again) or kind in {NoukaiError, InvalidInputError, NotSubmittedError}


@pytest.mark.parametrize("kind", KINDS)
def test_the_notes_of_an_error_travel_too(kind: type[NoukaiError]) -> None:
    """A note that an orchestrator added is not lost on the way."""
    error = example(kind)
    error.add_note("on worker 3")
    for way, again in trips(error):
        assert again.__notes__ == ["on worker 3"], way


def test_a_status_survives_the_trip_to_another_process() -> None:
    """Statuses are values: equal after the trip, frozen, and an unknown state stays the word that it was."""
    for state in ("completed", "paused"):
        status = JobStatus(id="j-1", state=state, result=ExecuteResult(output=[1]), progress={"done": 1})
        again = pickle.loads(pickle.dumps(status))
        assert again == status
        assert type(again.state) is type(status.state)
    with pytest.raises(ValueError, match="frozen"):
        status.state = JobState.FAILED  # type: ignore[misc]


@pytest.mark.parametrize("state", JobState, ids=str)
def test_the_outcome_of_a_status(state: JobState) -> None:
    """A completed status gives its result, the bad ends raise and carry the status, the others have none."""
    status = JobStatus(
        id="j-1", state=state, result=ExecuteResult(output=5) if state == "completed" else None
    )
    kinds: dict[str, Any] = {"failed": noukai_core.JobFailedError, "cancelled": noukai_core.JobCancelledError}
    if state is JobState.COMPLETED:
        assert status.result_or_raise().output == 5
    else:
        with pytest.raises(kinds.get(state, InvalidInputError)) as caught:
            status.result_or_raise()
        assert getattr(caught.value, "status", status) is status
