"""Which exception Airflow sees for each error of the job client."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import noukai_core as core
from noukai_airflow import exceptions
from noukai_airflow.exceptions import NoukaiException, NoukaiPermanentException, translate

ABOUT_A_JOB = (core.JobFailedError, core.JobCancelledError, core.JobTimeoutError)


@pytest.mark.parametrize("error_type", ABOUT_A_JOB)
def test_an_error_about_a_job(error_type: Any) -> None:
    """The exception has the name of the error, its message, and the job."""
    translated = translate(error_type("it ended", job_id="job_1"))
    assert type(translated).__name__ == f"Noukai{error_type.__name__.removesuffix('Error')}Exception"
    assert (str(translated), translated.job_id) == ("it ended", "job_1")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (core.RateLimitError("slow down", status_code=429, retry_after=7.0), "NoukaiRateLimitException"),
        (core.JobNotFoundError("no such job", status_code=404), "NoukaiJobNotFoundException"),
        (core.TransientError("no response"), "NoukaiTransientException"),
        (core.AuthenticationError("wrong key", status_code=401), "NoukaiPermanentException"),
        (core.ResponseTooLargeError("too large"), "NoukaiPermanentException"),
        (core.InvalidInputError("message is missing"), "NoukaiPermanentException"),
        (core.ClientClosedError("closed"), "NoukaiTransientException"),
        (core.NoukaiError("something else"), "NoukaiException"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_of_a_request(error: core.NoukaiError, expected: str) -> None:
    """The type tells whether a retry can help, and what the server said is kept."""
    translated = translate(error)
    assert (type(translated).__name__, str(translated)) == (expected, str(error))
    assert translated.retry_after == getattr(error, "retry_after", None)


def test_a_submission_that_is_unknown() -> None:
    """The exception names the submission, as the error does, so that its job can be looked for."""
    submission = core.Submission.new()
    error = core.SubmissionUnknownError(f"unknown: {submission.id}", submission=submission)
    translated = translate(error)
    assert isinstance(translated, exceptions.NoukaiSubmissionUnknownException)
    assert submission.id in str(translated)


def subtypes(exception_type: type[NoukaiException]) -> set[type[NoukaiException]]:
    """An exception type and all that derive from it."""
    return {exception_type}.union(*(subtypes(derived) for derived in exception_type.__subclasses__()))


@pytest.mark.parametrize(
    "exception_type", sorted(subtypes(NoukaiException), key=str), ids=lambda kind: kind.__name__
)
def test_a_copy_of_an_exception(exception_type: type[NoukaiException]) -> None:
    """An exception arrives whole in another process, such as one of a pool in a task."""
    error = exception_type("it ended")
    error.request_id = "req_1"
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), vars(copied)) == (exception_type, "it ended", vars(error))


def test_what_is_permanent_is_not_retried() -> None:
    """Airflow fails a task at once for a permanent exception, and for no other one of the base alone."""
    from airflow.providers.common.compat.sdk import AirflowFailException

    assert issubclass(NoukaiPermanentException, AirflowFailException)
    assert not issubclass(NoukaiException, AirflowFailException)
