"""A cancel as well as possible: what it comes to, and the line that is logged of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from noukai_core import CancelOutcome, Noukai, acancel_job, cancel_job
from tests.core.drivers import Blocking
from tests.core.scripted_server import FLOW, ScriptedServer, rejection, respond, state

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient

log = logging.getLogger("tests.of_a_cancel")


def cancel(job: Any, **options: Any) -> CancelOutcome:
    if isinstance(job, Blocking):
        outcome: CancelOutcome = job._runner.run(acancel_job(job._target, **options))  # type: ignore[arg-type]
        return outcome
    return cancel_job(job, **options)


def job_of(client: Noukai) -> Any:
    return client.flow(FLOW).attach("job-1")


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == log.name]


@pytest.mark.parametrize("after", ["cancelled", "running"])
def test_a_cancelled_job(
    scripted: MakeClient, server: ScriptedServer, caplog: pytest.LogCaptureFixture, after: str
) -> None:
    """An accepted cancel counts unless the job ended otherwise, and is logged with its reason."""
    caplog.set_level("INFO", log.name)
    server.on("cancel", respond(202, json={})).on("poll", state(after))
    outcome = cancel(job_of(scripted()))
    assert outcome.cancelled
    assert outcome.not_needed is None
    assert outcome.log("a test", log) is True
    assert lines(caplog) == [("INFO", f"Noukai job job-1 of {FLOW}: cancelled (a test)")]


@pytest.mark.parametrize("after", ["completed", "failed"])
def test_a_job_that_had_ended(
    scripted: MakeClient, server: ScriptedServer, caplog: pytest.LogCaptureFixture, after: str
) -> None:
    """A job that had already ended was not cancelled, whatever the server said to the cancel."""
    caplog.set_level("INFO", log.name)
    server.on("cancel", respond(202, json={})).on("poll", state(after))
    outcome = cancel(job_of(scripted()))
    assert outcome.log("a test", log) is False
    assert lines(caplog) == [("INFO", f"Noukai job job-1 of {FLOW}: not cancelled (already {after})")]


def test_a_job_that_the_server_does_not_know(
    scripted: MakeClient, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An unknown job needs no cancel."""
    caplog.set_level("INFO", log.name)
    server.on("cancel", rejection(404, "JOB_NOT_FOUND"))
    assert cancel(job_of(scripted())).log("a test", log) is False
    assert lines(caplog) == [("INFO", f"Noukai job job-1 of {FLOW}: not cancelled (unknown to the server)")]


def test_a_cancel_that_fails(
    scripted: MakeClient, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed cancel raises nothing, and is a warning that names the job and the error."""
    server.on("cancel", respond(403, json={"error": "not yours"}))
    outcome = cancel(job_of(scripted()))
    assert not outcome.cancelled
    assert outcome.not_needed is None
    assert outcome.log("a test", log) is False
    ((level, line),) = lines(caplog)
    assert level == "WARNING"
    assert line == f"Noukai job job-1 of {FLOW}: cancel failed ({outcome.error}; may still be running)"


def test_without_a_poll_the_servers_word_counts(scripted: MakeClient, server: ScriptedServer) -> None:
    """Where time is short, an accepted cancel is not confirmed by a second request."""
    server.on("cancel", respond(202, json={}))
    assert cancel(job_of(scripted()), confirm=False).cancelled
    assert len(server.requests) == 1


def test_a_poll_that_fails_changes_nothing(scripted: MakeClient, server: ScriptedServer) -> None:
    """The poll after an accepted cancel is an extra."""
    server.on("cancel", respond(202, json={})).on("poll", respond(403, json={}))
    assert cancel(job_of(scripted())).cancelled
