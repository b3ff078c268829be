"""Cancelling: what each answer of the assumed cancel route means."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx
import pytest

from noukai_core import (
    AccessDenied,
    APIError,
    AuthenticationFailed,
    CancelUnsupported,
    CreditsExhausted,
    JobNotFound,
    Refused,
    Unavailable,
)
from tests.core.wire import FLOW, Answer, Wire, refusal, reply, state

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.core.conftest import MakeClient


@pytest.mark.parametrize("code", [200, 202, 204])
def test_any_2xx_is_an_accepted_cancel(scripted: MakeClient, wire: Wire, code: int) -> None:
    """The server took it: cancel() returns nothing."""
    wire.on("cancel", reply(code))
    assert scripted().flow(FLOW).attach("job-1").cancel() is None
    assert len(wire.requests) == 1


@pytest.mark.parametrize("code", [409, 410])
def test_a_job_that_has_ended_is_no_error(scripted: MakeClient, wire: Wire, code: int) -> None:
    """The server says that it is over already, which is what the caller wants."""
    wire.on("cancel", refusal(code, "ALREADY_FINISHED"))
    assert scripted().flow(FLOW).attach("job-1").cancel() is None
    assert len(wire.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        refusal(404, "NOT_FOUND"),
        reply(404, json={"detail": "Not Found"}),
        reply(404, html="<html>404</html>"),
        refusal(405),
        refusal(501),
    ],
    ids=["404 of another code", "404 of the router", "404 of a proxy", "405", "501"],
)
def test_a_server_without_a_cancel_route(scripted: MakeClient, wire: Wire, answer: Answer) -> None:
    """The error says that the job goes on, and on which server nothing can be done about it."""
    wire.on("cancel", answer)
    with pytest.raises(CancelUnsupported) as caught:
        scripted().flow(FLOW).attach("job-1").cancel()
    assert isinstance(caught.value, Refused)
    assert caught.value.job_id == "job-1"
    assert "job-1" in str(caught.value)
    assert len(wire.requests) == 1


def test_an_unknown_job_cannot_be_cancelled(scripted: MakeClient, wire: Wire) -> None:
    """A job that the server does not know is an error, not a success."""
    wire.on("cancel", refusal(404, "job_not_found"))
    with pytest.raises(JobNotFound) as caught:
        scripted().flow(FLOW).attach("job-1").cancel()
    assert (caught.value.job_id, caught.value.request_id) == ("job-1", "req-42")
    assert len(wire.requests) == 1


def test_a_job_that_no_worker_has_taken_yet_is_cancelled_all_the_same(
    scripted: MakeClient, wire: Wire
) -> None:
    """Inside the race "no such job" is not believed: giving up would leave a paid job running."""
    wire.on("cancel", refusal(404, "JOB_NOT_FOUND"), refusal(404, "JOB_NOT_FOUND"), reply(202))
    scripted().flow(FLOW).attach("job-1", submitted_at=datetime.now(UTC)).cancel()
    assert len(wire.made("cancel")) == 3


@pytest.mark.parametrize(
    "status, kind", [(401, AuthenticationFailed), (402, CreditsExhausted), (403, AccessDenied)], ids=str
)
def test_a_refused_cancel_ends_at_once(
    scripted: MakeClient, wire: Wire, status: int, kind: type[APIError]
) -> None:
    """A permanent refusal is raised with the server's words and the job's id."""
    wire.on("cancel", refusal(status, "", "the very words"))
    with pytest.raises(kind, match="the very words") as caught:
        scripted().flow(FLOW).attach("job-1").cancel()
    assert caught.value.job_id == "job-1"
    assert len(wire.requests) == 1


def test_a_cancel_is_tried_again_over_passing_faults(patient: MakeClient, wire: Wire) -> None:
    """Cancelling twice does no harm, so a lost answer is asked for again."""
    wire.on("cancel", httpx.ReadTimeout(""), httpx.ConnectError(""), refusal(503), refusal(409))
    patient().flow(FLOW).attach("job-1").cancel()
    assert len(wire.made("cancel")) == 4


def test_a_cancel_that_does_not_get_through_says_so(scripted: MakeClient, wire: Wire) -> None:
    """Nobody may believe that a job was cancelled when the server was not reached."""
    wire.on("cancel", httpx.ConnectError("refused"))
    with pytest.raises(Unavailable, match="job-1"):
        scripted().flow(FLOW).attach("job-1").cancel()


def test_cancel_on_a_server_that_has_none(local: MakeClient, emulator: Emulator) -> None:
    """On a real server without the route the job goes on."""
    emulator.control.script("grade-3", outcome="never")
    emulator.control.fault("no_cancel", on="cancel", times=None)
    job = local().flow(FLOW).job(message="hello")
    with pytest.raises(CancelUnsupported):
        job.cancel()
    assert job.status().state in {"pending", "running"}


def test_cancel_of_a_job_that_the_server_never_saw(local: MakeClient, emulator: Emulator) -> None:
    """On a real server an unknown id is told as unknown."""
    with pytest.raises(JobNotFound):
        local().flow(FLOW).attach("job-that-never-was").cancel()


def test_a_cancel_is_sent_to_a_job_seen_as_failed(scripted: MakeClient, wire: Wire) -> None:
    """The server, not this handle, knows whether a job can still be cancelled."""
    wire.on("poll", state("failed", error="why")).on("cancel", refusal(409))
    job = scripted().flow(FLOW).attach("job-1")
    job.status()
    job.cancel()
    assert len(wire.made("cancel")) == 1
