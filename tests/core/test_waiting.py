"""Waiting for a job: transient errors are retried by time, permanent ones end at once, a deadline holds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from noukai_core import (
    APIError,
    AuthenticationError,
    BadRequestError,
    InsufficientCreditsError,
    JobNotFoundError,
    JobTimeoutError,
    ModelKeyRejectedError,
    PermissionDeniedError,
    RateLimitError,
    TransientError,
)
from tests.core.scripted_server import FLOW, HttpResponse, ScriptedServer, rejection, respond, state

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.core.conftest import Clock, MakeClient


DONE = state("completed", result="x")
TRANSIENT: dict[str, HttpResponse | Exception] = {
    "timeout": httpx.ReadTimeout("slow"),
    "refused": httpx.ConnectError("refused"),
    "reset": httpx.ReadError("reset"),
    "hung up": httpx.RemoteProtocolError("Server disconnected without sending a response."),
    "408": rejection(408),
    "425": rejection(425),
    "429": rejection(429, "RATE_LIMITED"),
    "500": rejection(500, "INTERNAL_ERROR"),
    "502": respond(502, html="<html>Bad Gateway</html>"),
    "503": rejection(503),
    "504": rejection(504),
    "520": respond(520),
}


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_transient_error_is_waited_out(scripted: MakeClient, server: ScriptedServer, kind: str) -> None:
    """Transient errors between two successful responses cost the job nothing."""
    server.on("poll", state("running"), *[TRANSIENT[kind]] * 3, DONE)
    assert scripted().flow(FLOW).attach("job-1").wait(timeout_ms=20_000).output == "x"
    assert len(server.made("poll")) == 5


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_fault_that_does_not_pass_is_an_error_after_the_retry_window(
    scripted: MakeClient, server: ScriptedServer, kind: str
) -> None:
    """After the retry window without a successful response, the last error is raised, with its details."""
    server.on("poll", TRANSIENT[kind])
    begin = time.monotonic()
    with pytest.raises(TransientError) as caught:
        scripted(retry_timeout=0.06).flow(FLOW).attach("job-1").wait(timeout_ms=20_000)
    assert time.monotonic() - begin >= 0.06
    assert caught.value.job_id == "job-1"
    assert caught.value.status_code == (int(kind) if kind.isdigit() else None)
    assert isinstance(caught.value, RateLimitError) == (kind == "429")
    assert caught.value.request_id == (None if kind in {"502", "520"} or not kind.isdigit() else "req-42")
    assert "job-1" in str(caught.value)
    assert FLOW in str(caught.value)


def test_any_number_of_faults_is_waited_out_inside_the_retry_window(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """The retry window is time, not a count: a hundred quick errors do not use it up."""
    server.on("poll", *[rejection(503)] * 100, DONE)
    assert scripted(poll_interval=0.001).flow(FLOW).attach("job-1").wait(timeout_ms=50_000).output == "x"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "EXECUTION_ID_INVALID", BadRequestError),
        (401, "", AuthenticationError),
        (402, "CREDITS_EXHAUSTED", InsufficientCreditsError),
        (403, "", PermissionDeniedError),
        (422, "", BadRequestError),
        (404, "JOB_NOT_FOUND", JobNotFoundError),
        (404, "RUN_NOT_FOUND", JobNotFoundError),
        (500, "BYOK_KEY_REJECTED", ModelKeyRejectedError),
        (502, "byok_key_rejected", ModelKeyRejectedError),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("verb", ["wait", "status"])
def test_a_permanent_error_ends_a_wait_at_once(
    scripted: MakeClient, server: ScriptedServer, verb: str, status: int, code: str, kind: type[APIError]
) -> None:
    """One rejected poll is the end, and the error carries status, code, request id and job id."""
    server.on("poll", rejection(status, code, "the very words"))
    with pytest.raises(kind) as caught:
        getattr(scripted().flow(FLOW).attach("job-1"), verb)()
    error = caught.value
    assert (error.status_code, error.code or "", error.request_id, error.job_id) == (
        status,
        code.upper(),
        "req-42",
        "job-1",
    )
    assert all(part in str(error) for part in ("the very words", "req-42", "job-1", str(status)))
    assert len(server.made("poll")) == 1


def test_the_end_is_seen_by_a_last_poll_at_the_deadline(local: MakeClient, emulator: Emulator) -> None:
    """The pause is cut to the deadline, and the job is polled once more there."""
    emulator.control.script("grade-3", after_polls=2, result="x")
    job = local().flow(FLOW).job(message="hello")
    assert job.wait(timeout_ms=3_000, poll_interval=600).output == "x"
    assert emulator.control.counts(job.id)["poll"] == 2


def test_a_finished_job_is_returned_by_the_first_poll(scripted: MakeClient, server: ScriptedServer) -> None:
    """The first poll comes at once, whatever the interval."""
    server.on("poll", DONE)
    assert scripted(poll_interval=600).flow(FLOW).attach("job-1").wait(timeout_ms=3_600_000).output == "x"
    assert len(server.made("poll")) == 1


def test_a_hanging_poll_does_not_move_the_deadline(local: MakeClient, emulator: Emulator) -> None:
    """A poll that hangs ends soon after the deadline, not after the request's own timeout."""
    emulator.control.script("grade-3", outcome="never")
    job = local(timeout=3600).flow(FLOW).job(message="hello")
    emulator.control.fault("slow", on="poll", times=None, seconds=3600)
    with pytest.raises(JobTimeoutError) as caught:
        job.wait(timeout_ms=500)
    assert caught.value.status is None
    emulator.control.clear_faults()


def test_a_timeout_names_the_last_transient_error(
    scripted: MakeClient, server: ScriptedServer, clock: Clock
) -> None:
    """At the deadline, the error of a disturbed wait names the last transient error."""
    server.on("poll", state("running"), clock.after(60, rejection(503, "OVERLOADED")))
    with pytest.raises(JobTimeoutError, match="OVERLOADED") as caught:
        scripted().flow(FLOW).attach("job-1").wait(timeout_ms=60_000)
    assert caught.value.status.state == "running"


def test_a_long_retry_after_does_not_move_the_deadline(scripted: MakeClient, server: ScriptedServer) -> None:
    """A server that requests an hour gets one poll at the deadline, and none before it."""
    server.on("poll", rejection(429, Retry_After="3600"))
    with pytest.raises(JobTimeoutError):
        scripted().flow(FLOW).attach("job-1").wait(timeout_ms=300)
    assert len(server.made("poll")) <= 2


def test_retry_after_holds_back_the_next_poll(scripted: MakeClient, server: ScriptedServer) -> None:
    """A poll waits as long as the server requests, even if the interval is shorter."""
    server.on("poll", rejection(503, Retry_After="1"), DONE)
    begin = time.monotonic()
    scripted(poll_interval=0.01).flow(FLOW).attach("job-1").wait(timeout_ms=20_000)
    assert time.monotonic() - begin >= 1
    assert len(server.made("poll")) == 2


GOOD: dict[str, tuple[str, HttpResponse]] = {
    "status": ("poll", state("running")),
    "cancel": ("cancel", respond(202)),
    "trace": ("trace", respond(json={"flowRun": {}, "steps": []})),
    "verify_key": ("verify", respond(json={"org": "acme"})),
}


def single_call(client: Any, verb: str) -> Any:
    return getattr(client if verb == "verify_key" else client.flow(FLOW).attach("job-1"), verb)()


@pytest.mark.parametrize("verb", GOOD)
def test_a_single_call_tries_again(patient: MakeClient, server: ScriptedServer, verb: str) -> None:
    """One poll, a cancel, a trace and a key check survive transient errors."""
    kind, response = GOOD[verb]
    server.on(kind, rejection(502), httpx.ReadError("reset"), response)
    single_call(patient(), verb)
    assert len(server.made(kind)) == 3


@pytest.mark.parametrize("verb", GOOD)
def test_a_single_call_gives_up_soon(scripted: MakeClient, server: ScriptedServer, verb: str) -> None:
    """A persistent error is raised after a few seconds, not after the retry window of a wait."""
    kind, _ = GOOD[verb]
    server.on(kind, rejection(503))
    with pytest.raises(TransientError) as caught:
        single_call(scripted(), verb)
    assert caught.value.job_id == (None if verb == "verify_key" else "job-1")
    assert len(server.made(kind)) >= 2
