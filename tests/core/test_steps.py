"""The steps of a job, live: each is shown once, whatever becomes of the stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from noukai_core import APIError, InvalidResponseError, PermanentError, TransientError
from noukai_core._api import parsing
from noukai_core._api.endpoints import Call
from noukai_core._engine.follow import StepFollower
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath
from tests.core.scripted_server import FLOW, KEY, HttpResponse, ScriptedServer, rejection, respond, state
from tests.core.turned_clock import Turned

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient

DRAFT = {"stepId": "draft"}
CHECK = {"stepId": "check"}
COST = {"durationMs": 1200, "modelUsed": "gpt-5", "tokens": {"total": 12}, "costUsd": "0.00012"}


def event(kind: str, number: str | None = None, **fields: Any) -> str:
    """An event as the service sends it."""
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {kind}\ndata: {json.dumps({'eventType': kind, **fields})}\n\n"


STARTED = event("step_started", **DRAFT)
COMPLETED = event("step_completed", **DRAFT, **COST)
THEN = event("step_started", **CHECK) + event("step_completed", **CHECK)
END = event("flow_completed", result="done")


def stream(*events: str, error: Exception | None = None, **headers: str) -> HttpResponse:
    """A stream of these events, which ends or breaks after them."""

    class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield from (event.encode() for event in events)
            if error is not None:
                raise error

        async def __aiter__(self) -> Any:
            for chunk in self:
                yield chunk

    return lambda request: httpx.Response(
        200, headers={"Content-Type": "text/event-stream; charset=utf-8", **headers}, stream=Body()
    )


def steps(client: Any, **options: Any) -> list[str]:
    """Follow the job, and return its steps in words."""
    return [step.text for step in client.flow(FLOW).attach("job-1").steps(**options)]


SHOWN = [
    "draft started",
    "draft completed after 1.2 s (model gpt-5, 12 tokens, $0.00012)",
    "check started",
    "check completed",
]


def test_each_step_is_shown(scripted: MakeClient, server: ScriptedServer) -> None:
    """Each step is yielded when it starts and when it completes, with what it used; other events are not."""
    output = event("step_output", **DRAFT, outputData={"text": "secret"})
    server.on("stream", stream(event("run_started"), STARTED, output, COMPLETED, THEN, END))
    assert steps(scripted()) == SHOWN
    (request,) = server.made("stream")
    assert request.headers["Accept"] == "text/event-stream"
    assert request.headers["Accept-Encoding"] == "identity"
    assert server.made("poll") == []


def test_a_stream_that_breaks_is_opened_again(scripted: MakeClient, server: ScriptedServer) -> None:
    """A stream that ends early, breaks or is unavailable is opened again, and nothing is shown twice."""
    server.on("poll", state("running"))
    server.on(
        "stream",
        stream(STARTED),
        stream(STARTED, error=httpx.ReadError("reset")),
        stream(STARTED, COMPLETED, error=httpx.ReadTimeout("silent")),
        rejection(503),
        httpx.ConnectError("refused"),
        stream(STARTED, COMPLETED, THEN, END),
    )
    assert steps(scripted()) == SHOWN
    assert len(server.made("stream")) == 6


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_the_poll_says_that_the_job_has_ended(scripted: MakeClient, server: ScriptedServer, end: str) -> None:
    """The end of a stream proves nothing: it is opened again until a poll shows that the job has ended."""
    server.on("stream", stream(STARTED))
    server.on("poll", state("running"), rejection(503), state(end))
    assert steps(scripted()) == ["draft started"]
    assert len(server.made("stream")) == 4


def test_the_last_steps_are_read_after_the_end(scripted: MakeClient, server: ScriptedServer) -> None:
    """A stream that ended before its job is read once more, for the last steps."""
    server.on("stream", stream(STARTED), stream(STARTED, COMPLETED, THEN))
    server.on("poll", state("failed"))
    assert steps(scripted()) == SHOWN
    assert len(server.made("stream")) == 2


def test_a_job_that_has_ended_before_its_stream_is_available(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """The steps of a job that has ended are asked for until the service responds to that."""
    refusals = (rejection(503), rejection(503), httpx.ConnectError("refused"))
    server.on("stream", *refusals, stream(STARTED, COMPLETED, THEN))
    server.on("poll", state("failed"))
    assert steps(scripted()) == SHOWN
    assert len(server.made("poll")) == 1


def test_events_with_numbers_are_resumed(scripted: MakeClient, server: ScriptedServer) -> None:
    """A server that numbers its events receives the last number, and may resume after it or repeat all."""
    server.on("poll", state("running"))
    first, again = event("step_started", "1", **DRAFT), event("step_started", "3", **DRAFT)
    failed = event("step_error", "2", **DRAFT, error={"code": "OVERLOADED", "message": "busy"})
    server.on("stream", stream(first, failed), stream(again), stream(first, failed, again, END))
    assert steps(scripted()) == [
        "draft started",
        "draft failed: OVERLOADED: busy",
        "draft started",
    ]
    assert [request.headers.get("Last-Event-ID") for request in server.made("stream")] == [None, "2", "3"]


def test_retries_and_loops_are_told_apart(scripted: MakeClient, server: ScriptedServer) -> None:
    """A step that is tried again is shown with its attempt, and one that loops is shown each time."""
    failed = event("step_error", **DRAFT, error="busy")
    loop = [event(kind, **CHECK, loopIndex=index) for index in (0, 1) for kind in ("step_started",)]
    server.on("poll", state("running"))
    server.on("stream", stream(STARTED, failed), stream(STARTED, failed, STARTED, COMPLETED, *loop, END))
    assert steps(scripted()) == [
        "draft started",
        "draft failed: busy",
        "draft started (attempt 2)",
        "draft completed after 1.2 s (attempt 2, model gpt-5, 12 tokens, $0.00012)",
        "check started",
        "check started",
    ]


def test_an_event_that_is_sent_twice_is_shown_once(scripted: MakeClient, server: ScriptedServer) -> None:
    """A server that sends each event twice in one connection changes nothing."""
    events = (STARTED + COMPLETED + THEN).split("\n\n")[:-1]
    twice = [f"{one}\n\n" for one in events for _ in range(2)]
    server.on("stream", stream(*twice, END))
    assert steps(scripted()) == SHOWN


@pytest.mark.parametrize("size", [300_000, 10 * 1024 * 1024])
@pytest.mark.parametrize("shape", ["one line", "many lines", "no line"])
def test_a_huge_event_is_dropped(scripted: MakeClient, server: ScriptedServer, size: int, shape: str) -> None:
    """An event beyond the limit is dropped without being kept, and those after it are shown."""
    text = {
        "one line": "data: " + json.dumps({**DRAFT, "output": "x" * size}),
        "many lines": f"data: {'x' * 98}\n" * (size // 100),
        "no line": ":" + "x" * size,
    }[shape]
    chunks = [text[begin : begin + 65_536] for begin in range(0, len(text), 65_536)]
    server.on("stream", stream(STARTED, "event: step_completed\n", *chunks, "\n\n", COMPLETED, THEN, END))
    assert steps(scripted()) == SHOWN


def test_a_stream_without_an_end_is_left(scripted: MakeClient, server: ScriptedServer) -> None:
    """A connection that sends more than a response may have ends the following, with an error."""
    server.on("stream", stream(STARTED, *100 * [": nothing\n\n" * 100]))
    with pytest.raises(APIError, match="larger than 50000 bytes"):
        steps(scripted(max_response_bytes=50_000))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 501])
def test_a_refused_stream_is_an_error(scripted: MakeClient, server: ScriptedServer, status: int) -> None:
    """A stream that is refused is not asked for again, and the error says what the server said."""
    server.on("stream", rejection(status, "NOPE", "not for API keys"))
    with pytest.raises(APIError, match=r"Following job job-1 .*not for API keys.*req-42"):
        steps(scripted(retry_timeout=0.0))
    assert len(server.made("stream")) == 1


@pytest.mark.parametrize(
    "response",
    [
        respond(200, json={"steps": []}),
        respond(200, text="<html>a page</html>", headers={"Content-Type": "text/html"}),
        stream(STARTED, **{"Content-Encoding": "gzip"}),
    ],
)
def test_what_is_no_stream_is_an_error(
    scripted: MakeClient, server: ScriptedServer, response: HttpResponse
) -> None:
    """A response that is no stream of events, or is compressed, is not read as one."""
    server.on("stream", response)
    with pytest.raises((InvalidResponseError, PermanentError), match="Following job job-1"):
        steps(scripted(retry_timeout=0.0))


def test_nonsense_is_passed_over(scripted: MakeClient, server: ScriptedServer) -> None:
    """Events that are no JSON, name no step or are of an unknown type change nothing."""
    nonsense = [
        "data\n\n",
        "event: step_started\ndata: {\n\n",
        "event: step_started\ndata: [1]\n\n",
        event("step_started"),
        event("step_started", stepId=["x"]),
        event("step_exploded", **DRAFT),
        "event: step_started\nid: \0\ndata: \x1b[31m\n\n",
        ": a comment\n\n",
        "retry: -1\n\n",
    ]
    server.on("stream", stream(*nonsense, STARTED, COMPLETED, THEN, END))
    assert steps(scripted()) == SHOWN


def test_what_is_shown_is_clean(scripted: MakeClient, server: ScriptedServer, key: str) -> None:
    """The words of a step are one line, without what a terminal would act on, and without the key."""
    error = f"\x1b[31mbad\n{key} {'x' * 5000}"
    server.on("stream", stream(event("step_error", stepId="a\u202eb\nc", error={"message": error}), END))
    (shown,) = steps(scripted())
    assert shown.isprintable()
    assert key not in shown
    assert len(shown) < 600
    assert shown.startswith("a b c failed: bad")


def test_steps_that_were_shown_before_are_skipped(scripted: MakeClient, server: ScriptedServer) -> None:
    """A caller that has shown the first steps before can pass over them."""
    server.on("stream", stream(STARTED, COMPLETED, THEN, END))
    assert steps(scripted(), skip=3) == SHOWN[3:]


def test_a_process_follows_so_many_jobs(scripted: MakeClient, server: ScriptedServer) -> None:
    """A job beyond `max_followed_jobs` is not followed, by any client of the process, until another ends."""
    server.on("stream", stream(STARTED, COMPLETED, THEN, END))
    first = scripted(max_followed_jobs=1).flow(FLOW).attach("job-1").steps()
    next(first)
    with pytest.raises(TransientError, match=r"follows 1 jobs already \(max_followed_jobs\)"):
        steps(scripted(max_followed_jobs=1))
    first.close()
    assert steps(scripted(max_followed_jobs=1)) == SHOWN


def test_a_job_that_no_worker_has_begun_is_waited_for(scripted: MakeClient, server: ScriptedServer) -> None:
    """A 404 shortly after the submission is no refusal."""
    server.on("stream", rejection(404, "RUN_NOT_FOUND"), stream(STARTED, END))
    server.on("poll", rejection(404, "JOB_NOT_FOUND"))
    job = scripted().flow(FLOW).job("x")
    assert [step.text for step in job.steps()] == ["draft started"]


def follower(clock: Turned, limiter: PollRateLimiter, *, race_ends: float = 0.0) -> StepFollower:
    """A follower of the job on a clock that the test turns."""
    path = FlowPath(*FLOW.split("/"))
    return StepFollower(path, "job-1", ClientOptions.of(api_key=KEY), limiter, clock, race_ends=race_ends)


@pytest.mark.parametrize("race_ends", [0.0, 60.0])
def test_a_server_that_asks_for_a_day_is_not_waited_for(race_ends: float) -> None:
    """A long `Retry-After` does not make the following longer than its retry window, nor than the race."""
    running = parsing.HttpResponse(200, {}, b'{"status": "running"}')
    refused = b'{"detail": {"code": "RUN_NOT_FOUND"}}' if race_ends else b""
    busy = parsing.HttpResponse(404 if race_ends else 503, {"retry-after": "86400"}, refused)
    clock = Turned(lambda call, now: busy if call.path.endswith("/stream") else running)
    with pytest.raises(APIError):
        clock.run(follower(clock, PollRateLimiter(50), race_ends=race_ends).effects())
    assert clock.now == pytest.approx(race_ends or 300)


def test_its_polls_share_the_rate_limit() -> None:
    """A poll of a job that is followed waits for its slot, and pauses and slows all polls after a 429."""
    ended = parsing.HttpResponse(200, {}, b'{"status": "completed"}')
    busy = parsing.HttpResponse(429, {"retry-after": "4"}, b"")
    times: list[float] = []

    def respond(call: Call[Any], now: float) -> parsing.HttpResponse | APIError:
        if call.path.endswith("/stream"):
            return TransientError("reset") if len(times) < 2 else PermanentError("enough")
        times.append(now)
        return busy if len(times) == 1 else ended

    clock, limiter = Turned(respond), PollRateLimiter(2)
    for _ in range(10):
        limiter.reserve(clock.now)
    with pytest.raises(PermanentError, match="enough"):
        clock.run(follower(clock, limiter).effects())
    assert times == [pytest.approx(5, abs=0.2), pytest.approx(9, abs=0.2)]
    assert limiter.last_success_at == times[1]
    slots = [limiter.reserve(clock.now) for _ in range(10)]
    assert slots[-1] - slots[0] > 9 / 1.5
