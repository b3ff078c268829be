"""Look up the job of a submission without submitting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from noukai_core import Submission, SubmissionUnknownError
from tests.core.scripted_server import FLOW, HttpResponse, ScriptedServer, respond

if TYPE_CHECKING:
    from collections.abc import Callable

    from noukai_core.emulator import Emulator


def test_the_job_of_a_submission_is_found(local: Callable[..., Any], emulator: Emulator) -> None:
    """A submission's identity leads to its job, and nothing is submitted for it."""
    submission = Submission.new()
    client = local()
    made = client.flow(FLOW).job("hello", submission=submission)

    found = client.flow(FLOW).find(submission)

    assert found.id == made.id
    assert emulator.control.counts()["submit"] == 1


def test_a_submission_that_was_never_made_is_not_found(local: Callable[..., Any], emulator: Emulator) -> None:
    """An identity that the server does not know leads to no job, after one question."""
    assert local().flow(FLOW).find(Submission.new()) is None
    assert emulator.control.counts()["session"] == 1
    assert emulator.control.counts()["submit"] == 0


def test_a_job_of_another_flow_is_not_taken_for_it(local: Callable[..., Any]) -> None:
    """A job of another flow under the same submission is not taken for its job, and proves no absence."""
    submission = Submission.new()
    client = local()
    client.flow("acme/spelling/other").job("hello", submission=submission)

    with pytest.raises(SubmissionUnknownError):
        client.flow(FLOW).find(submission)


@pytest.mark.parametrize(
    "response",
    [respond(404, json={"detail": "Not Found"}), respond(404, text="<html>no such page</html>")],
    ids=["no-route", "proxy"],
)
def test_a_foreign_404_proves_nothing(
    scripted: Callable[..., Any], server: ScriptedServer, response: HttpResponse
) -> None:
    """A server without the session call, or a proxy, is never believed to say that there is no job."""
    server.on("submit", httpx.ReadTimeout("")).on("session", response)

    with pytest.raises(SubmissionUnknownError):
        scripted(recovery_timeout=0.2).flow(FLOW).job("hello")

    assert len(server.made("submit")) == 1
