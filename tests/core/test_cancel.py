"""Cancelling: what each response of the assumed cancel route means."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx
import pytest

from noukai_core import (
    APIError,
    AuthenticationError,
    CancelUnsupportedError,
    InsufficientCreditsError,
    JobNotFoundError,
    PermanentError,
    PermissionDeniedError,
    TransientError,
)
from tests.core.scripted_server import FLOW, HttpResponse, ScriptedServer, rejection, respond, state

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.core.conftest import MakeClient


@pytest.mark.parametrize("code", [200, 202, 204])
def test_any_2xx_is_an_accepted_cancel(scripted: MakeClient, server: ScriptedServer, code: int) -> None:
    """The server took it: cancel() returns nothing."""
    server.on("cancel", respond(code))
    assert scripted().flow(FLOW).attach("job-1").cancel() is None
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [409, 410])
def test_a_job_that_has_ended_is_no_error(scripted: MakeClient, server: ScriptedServer, code: int) -> None:
    """The server says that the job has already ended, which is what the caller wants."""
    server.on("cancel", rejection(code, "ALREADY_FINISHED"))
    job = scripted().flow(FLOW).attach("job-1")
    assert job.cancel() is None
    assert job.had_ended
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "response",
    [
        rejection(404, "NOT_FOUND"),
        rejection(405),
        rejection(501),
    ],
    ids=["404 of another code", "405", "501"],
)
def test_a_server_without_a_cancel_route(
    scripted: MakeClient, server: ScriptedServer, response: HttpResponse
) -> None:
    """The error says that the job is left running, and on which server it cannot be cancelled."""
    server.on("cancel", response)
    with pytest.raises(CancelUnsupportedError) as caught:
        scripted().flow(FLOW).attach("job-1").cancel()
    assert isinstance(caught.value, PermanentError)
    assert caught.value.job_id == "job-1"
    assert "job-1" in str(caught.value)
    assert len(server.requests) == 1


def test_an_unknown_job_cannot_be_cancelled(scripted: MakeClient, server: ScriptedServer) -> None:
    """A job that the server does not know is an error, not a success."""
    server.on("cancel", rejection(404, "job_not_found"))
    with pytest.raises(JobNotFoundError) as caught:
        scripted().flow(FLOW).attach("job-1").cancel()
    assert (caught.value.job_id, caught.value.request_id) == ("job-1", "req-42")
    assert len(server.requests) == 1


def test_a_job_that_no_worker_has_taken_yet_is_cancelled_all_the_same(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """During the race, "no such job" is not final: stopping there would leave a paid job running."""
    server.on("cancel", rejection(404, "JOB_NOT_FOUND"), rejection(404, "JOB_NOT_FOUND"), respond(202))
    scripted().flow(FLOW).attach("job-1", submitted_at=datetime.now(UTC)).cancel()
    assert len(server.made("cancel")) == 3


@pytest.mark.parametrize("code", ["RUN_NOT_FOUND", "FLOW_NOT_FOUND"])
def test_during_the_race_no_404_of_the_service_ends_a_cancel(
    scripted: MakeClient, server: ScriptedServer, code: str
) -> None:
    """However the service says that it does not know the job yet, the cancel is sent again."""
    server.on("cancel", rejection(404, code), rejection(404, code), respond(202))
    scripted().flow(FLOW).attach("job-1", submitted_at=datetime.now(UTC)).cancel()
    assert len(server.made("cancel")) == 3


@pytest.mark.parametrize("status", [405, 501])
def test_a_server_without_the_route_is_not_asked_again(
    scripted: MakeClient, server: ScriptedServer, status: int
) -> None:
    """What says that there is no route ends a cancel during the race as well."""
    server.on("cancel", rejection(status))
    with pytest.raises(CancelUnsupportedError):
        scripted().flow(FLOW).attach("job-1", submitted_at=datetime.now(UTC)).cancel()
    assert len(server.made("cancel")) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, AuthenticationError), (402, InsufficientCreditsError), (403, PermissionDeniedError)],
    ids=str,
)
def test_a_rejected_cancel_ends_at_once(
    scripted: MakeClient, server: ScriptedServer, status: int, kind: type[APIError]
) -> None:
    """A permanent error is raised with the server's words and the job's id."""
    server.on("cancel", rejection(status, "", "the very words"))
    with pytest.raises(kind, match="the very words") as caught:
        scripted().flow(FLOW).attach("job-1").cancel()
    assert caught.value.job_id == "job-1"
    assert len(server.requests) == 1


def test_a_cancel_is_tried_again_over_transient_errors(patient: MakeClient, server: ScriptedServer) -> None:
    """Cancelling twice does no harm, so a cancel whose response was lost is sent again."""
    server.on("cancel", httpx.ReadTimeout(""), httpx.ConnectError(""), rejection(503), rejection(409))
    patient().flow(FLOW).attach("job-1").cancel()
    assert len(server.made("cancel")) == 4


def test_a_cancel_that_does_not_get_through_says_so(scripted: MakeClient, server: ScriptedServer) -> None:
    """No caller may believe that a job was cancelled when the server was not reached."""
    server.on("cancel", httpx.ConnectError("refused"))
    with pytest.raises(TransientError, match="job-1"):
        scripted().flow(FLOW).attach("job-1").cancel()


def test_cancel_on_a_server_that_has_none(local: MakeClient, emulator: Emulator) -> None:
    """On a real server without the route, the job is left running."""
    emulator.control.script("grade-3", outcome="never")
    emulator.control.fault("no_cancel", on="cancel", times=None)
    job = local().flow(FLOW).job(message="hello")
    with pytest.raises(CancelUnsupportedError):
        job.cancel()
    assert job.status().state in {"pending", "running"}


def test_cancel_of_a_job_that_the_server_never_saw(local: MakeClient, emulator: Emulator) -> None:
    """On a real server, an unknown id is reported as unknown."""
    with pytest.raises(JobNotFoundError):
        local().flow(FLOW).attach("job-that-never-was").cancel()


def test_a_cancel_is_sent_to_a_job_seen_as_failed(scripted: MakeClient, server: ScriptedServer) -> None:
    """The server, not this handle, knows whether a job can still be cancelled."""
    server.on("poll", state("failed", error="why")).on("cancel", rejection(409))
    job = scripted().flow(FLOW).attach("job-1")
    job.status()
    job.cancel()
    assert len(server.made("cancel")) == 1
