"""The 404 race: just after its submission a job may not be written down yet."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from noukai_core import JobNotFoundError, JobState
from tests.core.scripted_server import FLOW, ScriptedServer, rejection, state

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.core.conftest import MakeClient

DONE = state("completed", result="x")
MISSING = rejection(404, "JOB_NOT_FOUND", "no such job")


def test_a_job_that_no_worker_has_taken_yet_is_pending(scripted: MakeClient, server: ScriptedServer) -> None:
    """Just after its submission a job that the server does not know yet is pending, and is waited for."""
    server.on("poll", MISSING, MISSING, MISSING, DONE)
    job = scripted().flow(FLOW).job(message="hello")
    assert job.status().state is JobState.PENDING
    assert job.wait(timeout_ms=20_000).output == "x"


def test_the_404_race_on_a_real_server(local: MakeClient, emulator: Emulator) -> None:
    """A job that turns up after a while is waited for to its end."""
    emulator.control.script("grade-3", visible_after_seconds=0.5, after_seconds=0.6, result="x")
    assert local().flow(FLOW).job(message="hello").wait(timeout_ms=20_000).output == "x"


def test_a_job_that_never_turns_up_is_not_found_after_the_race(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """The race has an end, counted from the submission."""
    server.on("poll", MISSING)
    job = scripted(not_found_grace=0.4).flow(FLOW).job(message="hello")
    begin = time.monotonic()
    with pytest.raises(JobNotFoundError) as caught:
        job.wait(timeout_ms=20_000)
    assert time.monotonic() - begin > 0.3
    assert caught.value.job_id == "job-1"
    assert caught.value.retryable is False


def test_the_race_is_longer_than_the_retry_window(scripted: MakeClient, server: ScriptedServer) -> None:
    """A job that is not written down yet is no fault of the server."""
    server.on("poll", *[MISSING] * 20, DONE)
    job = scripted(retry_timeout=0.05, poll_interval=0.02).flow(FLOW).job(message="hello")
    assert job.wait(timeout_ms=20_000).output == "x"


def test_the_race_ends_in_no_storm_of_polls(scripted: MakeClient, server: ScriptedServer) -> None:
    """Near the end of the race, polls do not become ever more frequent."""
    server.on("poll", MISSING)
    job = scripted(not_found_grace=0.5, poll_interval=0.1).flow(FLOW).job(message="hello")
    with pytest.raises(JobNotFoundError):
        job.wait(timeout_ms=20_000)
    assert len(server.made("poll")) <= 8


def test_an_attached_handle_knows_no_race(scripted: MakeClient, server: ScriptedServer) -> None:
    """Without the time of its submission a job that the server does not know is unknown at once."""
    server.on("poll", MISSING)
    with pytest.raises(JobNotFoundError):
        scripted().flow(FLOW).attach("job-1").wait(timeout_ms=20_000)
    assert len(server.made("poll")) == 1


@pytest.mark.parametrize(
    ("ago", "found"),
    [(timedelta(seconds=1), True), (timedelta(seconds=61), False), (timedelta(seconds=-30), True)],
)
def test_an_attached_handle_can_be_reported_the_time(
    scripted: MakeClient, server: ScriptedServer, ago: timedelta, found: bool
) -> None:
    """With the time of its submission the race counts from there; a clock that runs ahead does no harm."""
    server.on("poll", MISSING, DONE)
    job = scripted().flow(FLOW).attach("job-1", submitted_at=datetime.now(UTC) - ago)
    if found:
        assert job.wait(timeout_ms=20_000).output == "x"
    else:
        with pytest.raises(JobNotFoundError):
            job.wait(timeout_ms=20_000)
