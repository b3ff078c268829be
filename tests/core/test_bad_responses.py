"""Responses that make no sense: an error that names the request, never an endless wait or a lost job."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from noukai_core import (
    InvalidResponseError,
    JobState,
    NoukaiError,
    ResponseTooLargeError,
    SubmissionUnknownError,
)
from tests.core.scripted_server import FLOW, KEY, HttpResponse, ScriptedServer, respond, session, state

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.core.conftest import Clock, MakeClient

REQUEST = {"X-Request-ID": "req-13"}


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that ends in the middle."""

    def __iter__(self) -> Iterator[bytes]:
        yield b'{"executionId": "job-1", "sta'
        raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body as it is transferred, still compressed."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


NONSENSE: dict[str, dict[str, Any]] = {
    "not JSON": {"content": b"certainly", "headers": {**REQUEST, "Content-Type": "application/json"}},
    "HTML": {"html": "<html><body>Log in to the hotel's network</body></html>", "headers": REQUEST},
    "a list": {"json": [{"executionId": "job-1", "status": "completed"}], "headers": REQUEST},
    "text": {"json": "completed", "headers": REQUEST},
    "null": {"json": None, "headers": REQUEST},
    "empty": {"content": b"", "headers": REQUEST},
    "no id": {"json": {"flowId": "flow-1"}, "headers": REQUEST},
    "an id of a number": {"json": {"executionId": {"x": 7}, "status": [1]}, "headers": REQUEST},
    "cut JSON": {"content": b'{"executionId": "job-1", "sta', "headers": REQUEST},
    "bytes": {"content": b"\xff\xfe\x00\x80", "headers": REQUEST},
    "NaN": {"content": b'{"executionId": NaN, "status": NaN}', "headers": REQUEST},
    "deep": {"content": b'{"a":' * 200_000, "headers": REQUEST},
}


def nonsense(kind: str) -> HttpResponse:
    return respond(200, **NONSENSE[kind])


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_poll_that_makes_no_sense(scripted: MakeClient, server: ScriptedServer, kind: str) -> None:
    """Nonsense in place of a status ends, after the retry window, in an error that names job and request."""
    server.on("poll", nonsense(kind))
    job = scripted(retry_timeout=0.03).flow(FLOW).attach("job-1")
    with pytest.raises(InvalidResponseError) as caught:
        job.wait(timeout_ms=20_000)
    assert (caught.value.job_id, caught.value.request_id, caught.value.status_code) == (
        "job-1",
        "req-13",
        200,
    )
    assert "job-1" in str(caught.value)
    assert "req-13" in str(caught.value)


@pytest.mark.parametrize("kind", NONSENSE)
def test_one_senseless_poll_is_waited_out(scripted: MakeClient, server: ScriptedServer, kind: str) -> None:
    """One page from a proxy between two successful responses does not end the wait."""
    server.on("poll", state("running"), nonsense(kind), state("completed", result="x"))
    assert scripted().flow(FLOW).attach("job-1").wait(timeout_ms=20_000).output == "x"


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_senseless_response_to_a_submission_loses_no_job(
    scripted: MakeClient, server: ScriptedServer, kind: str
) -> None:
    """The job behind a nonsensical response is found by its submission, and nothing is sent twice."""
    server.on("submit", nonsense(kind)).on("session", session("job-5"))
    assert scripted(recovery_timeout=5).flow(FLOW).job(message="hello").id == "job-5"
    assert len(server.made("submit")) == 1


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_senseless_response_to_a_submission_that_stays_unknown(
    scripted: MakeClient, server: ScriptedServer, kind: str
) -> None:
    """If the session makes no sense either, the error names the submission, and nothing was sent twice."""
    server.on("submit", nonsense(kind)).on("session", nonsense(kind))
    with pytest.raises(SubmissionUnknownError) as caught:
        scripted(recovery_timeout=0.05).flow(FLOW).job(message="hello")
    assert caught.value.submission.id == server.made("submit")[0].headers["X-Session-Id"]
    assert len(server.made("submit")) == 1


@pytest.mark.parametrize("kind", ["not JSON", "a list", "empty", "no id"])
def test_an_accepted_cancel_needs_no_body(scripted: MakeClient, server: ScriptedServer, kind: str) -> None:
    """A 2xx to a cancel means cancelled, whatever its body says."""
    server.on("cancel", nonsense(kind))
    scripted().flow(FLOW).attach("job-1").cancel()
    assert len(server.made("cancel")) == 1


@pytest.mark.parametrize("code", [200, 409])
def test_a_web_page_is_no_accepted_cancel(patient: MakeClient, server: ScriptedServer, code: int) -> None:
    """A sign-in page or that of a proxy ended no job, so the cancel is sent again."""
    server.on("cancel", respond(code, **NONSENSE["HTML"]), respond(202))
    patient().flow(FLOW).attach("job-1").cancel()
    assert len(server.made("cancel")) == 2


@pytest.mark.parametrize("code", [200, 409])
def test_a_web_page_that_stays(scripted: MakeClient, server: ScriptedServer, code: int) -> None:
    """A cancel that only such pages respond to says so."""
    server.on("cancel", respond(code, **NONSENSE["HTML"]))
    with pytest.raises(InvalidResponseError, match="is a web page"):
        scripted().flow(FLOW).attach("job-1").cancel()


@pytest.mark.parametrize("kind", ["not JSON", "HTML", "a list", "empty"])
def test_a_key_check_that_makes_no_sense(scripted: MakeClient, server: ScriptedServer, kind: str) -> None:
    """A page with status 200 does not verify a key."""
    server.on("verify", nonsense(kind))
    with pytest.raises(InvalidResponseError):
        scripted(retry_timeout=0.03).verify_key()


def test_an_unknown_state_is_not_final(scripted: MakeClient, server: ScriptedServer) -> None:
    """An unknown state is passed on in lower case, is not finished, and polling continues."""
    server.on("poll", state("Paused"), state("Paused"), state("completed", result="x"))
    job = scripted().flow(FLOW).attach("job-1")
    status = job.status()
    assert (status.state, status.finished) == ("paused", False)
    assert not isinstance(status.state, JobState)
    assert job.wait(timeout_ms=20_000).output == "x"


def test_an_unknown_state_ends_at_the_deadline(
    scripted: MakeClient, server: ScriptedServer, clock: Clock
) -> None:
    """A job that stays in an unknown state is waited for until the deadline, and no longer."""
    server.on("poll", state("paused"), clock.after(60, state("paused")))
    with pytest.raises(TimeoutError) as caught:
        scripted().flow(FLOW).attach("job-1").wait(timeout_ms=60_000)
    assert "paused" in str(caught.value)


def test_a_result_over_the_cap(local: MakeClient, emulator: Emulator) -> None:
    """A response over the limit is rejected at once, and the error says which limit it exceeded."""
    emulator.control.script("grade-3", after_polls=1, result_bytes=200_000)
    job = local(max_response_bytes=100_000).flow(FLOW).job(message="hello")
    with pytest.raises(ResponseTooLargeError) as caught:
        job.wait(timeout_ms=20_000)
    assert caught.value.job_id == job.id
    assert "max_response_bytes" in str(caught.value)
    assert "100" in str(caught.value)


def test_a_result_under_the_cap(local: MakeClient, emulator: Emulator) -> None:
    """The same response is accepted under a limit that it fits."""
    emulator.control.script("grade-3", after_polls=1, result_bytes=200_000)
    result = local(max_response_bytes=300_000).flow(FLOW).job(message="hello").wait(timeout_ms=20_000)
    assert len(json.dumps(result.output)) >= 199_000


def test_a_small_response_that_unpacks_over_the_cap(scripted: MakeClient, server: ScriptedServer) -> None:
    """The cap holds for what is unpacked, too."""
    bomb = gzip.compress(
        b'{"executionId": "job-1", "status": "completed", "result": "' + b"x" * 5_000_000 + b'"}'
    )
    server.on("poll", respond(200, content=bomb, headers={"Content-Encoding": "gzip", **REQUEST}))
    with pytest.raises(ResponseTooLargeError):
        scripted(max_response_bytes=100_000).flow(FLOW).attach("job-1").wait(timeout_ms=20_000)


@pytest.mark.parametrize("times", [1, 2])
def test_what_a_bomb_unpacks_to_is_never_held(
    scripted: MakeClient, server: ScriptedServer, times: int
) -> None:
    """However often a response is compressed, no more of it is decompressed than is allowed."""
    bomb = b"x" * 50_000_000
    for _ in range(times):
        bomb = gzip.compress(bomb)
    headers = {"Content-Encoding": ", ".join(["gzip"] * times)}
    server.on("poll", lambda request: httpx.Response(200, headers=headers, stream=Chunks(bomb)))
    job = scripted(max_response_bytes=100_000, retry_timeout=0.03).flow(FLOW).attach("job-1")
    tracemalloc.start()
    try:
        with pytest.raises(InvalidResponseError):
            job.wait(timeout_ms=20_000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_packed_response(scripted: MakeClient, server: ScriptedServer) -> None:
    """A response with the requested compression is read, in any number of chunks."""
    packed = gzip.compress(
        b'{"executionId": "job-1", "status": "completed", "result": "' + b"x" * 999 + b'"}'
    )
    chunks = [packed[at : at + 7] for at in range(0, len(packed), 7)]
    headers = {"Content-Encoding": "gzip"}
    server.on("poll", lambda request: httpx.Response(200, headers=headers, stream=Chunks(*chunks)))
    assert scripted().flow(FLOW).attach("job-1").wait(timeout_ms=20_000).output == "x" * 999


def test_a_fault_that_quotes_the_key(scripted: MakeClient, server: ScriptedServer) -> None:
    """A server that sends the key back in what is no HTTP sees it quoted nowhere."""
    server.on("poll", httpx.RemoteProtocolError(f"illegal status line: {KEY}"))
    with pytest.raises(NoukaiError) as caught:
        scripted(retry_timeout=0.03).flow(FLOW).attach("job-1").wait(timeout_ms=20_000)
    assert "illegal status line" in str(caught.value)
    assert KEY not in str(caught.value)


def test_an_error_page_over_the_cap(scripted: MakeClient, server: ScriptedServer) -> None:
    """A rejection remains a rejection even if its page is over the limit."""
    server.on("poll", respond(401, content=b"x" * 200_000))
    with pytest.raises(NoukaiError) as caught:
        scripted(max_response_bytes=100_000).flow(FLOW).attach("job-1").wait(timeout_ms=20_000)
    assert caught.value.status_code == 401


def test_a_response_over_the_limit_loses_no_job(scripted: MakeClient, server: ScriptedServer) -> None:
    """A job whose acceptance was too large to read is found under the submission's identity."""
    server.on("submit", respond(202, content=b"x" * 200_000)).on("session", session("job-5"))
    job = scripted(max_response_bytes=100_000, recovery_timeout=5).flow(FLOW).job(message="hello")
    assert (job.id, len(server.made("submit"))) == ("job-5", 1)


def test_a_truncated_poll_is_waited_out(local: MakeClient, emulator: Emulator) -> None:
    """If a body is cut off on the way, the job is polled again."""
    emulator.control.script("grade-3", after_polls=2, result="x")
    emulator.control.fault("truncated", on="poll", times=2)
    assert local().flow(FLOW).job(message="hello").wait(timeout_ms=20_000).output == "x"


def test_a_truncated_submission_loses_no_job(local: MakeClient, emulator: Emulator) -> None:
    """A submission whose response was cut off results in one job."""
    emulator.control.script("grade-3", after_polls=1, result="x")
    emulator.control.fault("truncated", on="submit", times=1)
    assert local(recovery_timeout=10).flow(FLOW).job(message="hello").wait(timeout_ms=20_000).output == "x"
    assert len(emulator.control.jobs()) == 1


def test_a_body_that_ends_in_the_middle_past_the_retry_window(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """A connection that always breaks off ends in an error that names the job."""
    server.on("poll", respond(200, stream=Broken(), headers={"Content-Length": "9999"}))
    with pytest.raises(NoukaiError) as caught:
        scripted(retry_timeout=0.03).flow(FLOW).attach("job-1").wait(timeout_ms=20_000)
    assert caught.value.job_id == "job-1"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", ["submit", "poll", "cancel", "session", "verify"])
def test_a_redirect_is_not_followed(
    scripted: MakeClient, server: ScriptedServer, call: str, code: int
) -> None:
    """The key is sent to its own host and to no other; the error names the redirect."""
    away = respond(code, headers={"Location": "https://elsewhere.test/login?next=x", **REQUEST})
    server.on("submit", httpx.ReadTimeout("") if call == "session" else away)
    for kind in ("poll", "cancel", "session", "verify"):
        server.on(kind, away)
    client = scripted(retry_timeout=0.03, recovery_timeout=0.03)
    job = client.flow(FLOW).attach("job-1")
    acts = {
        "submit": lambda: client.flow(FLOW).job(message="hello"),
        "session": lambda: client.flow(FLOW).job(message="hello"),
        "poll": lambda: job.wait(timeout_ms=20_000),
        "cancel": job.cancel,
        "verify": client.verify_key,
    }
    with pytest.raises(NoukaiError) as caught:
        acts[call]()
    assert {request.url.host for request in server.requests} == {"noukai.test"}
    assert sum(request.method == "POST" for request in server.requests) == 1 or call != "submit"
    assert str(code) in str(caught.value)


def test_an_response_that_never_ends_is_given_up(local: MakeClient, emulator: Emulator) -> None:
    """A poll that hangs is bounded by the request timeout and then repeated."""
    emulator.control.script("grade-3", after_polls=1, result="x")
    job = local(timeout=0.4).flow(FLOW).job(message="hello")
    emulator.control.fault("slow", on="poll", times=1, seconds=3600)
    assert job.wait(timeout_ms=3_600_000).output == "x"
