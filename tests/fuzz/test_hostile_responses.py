"""Responses that are made to cost, to fool a reader or to show the key, over a connection."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noukai_core import JobStatus, NoukaiError, RunTrace, one_line
from noukai_core._engine import schedule
from tests.core.scripted_server import FLOW
from tests.fuzz.drivers import DRIVERS, client_of
from tests.fuzz.hostile_responses import LETTERS, MEGABYTE, VALUES, filled, http, responses
from tests.fuzz.nonsense import KEY, MARK, fuzzed
from tests.fuzz.raw_server import RawServer

MOST_BYTES = MEGABYTE
_OPTIONS: dict[str, Any] = {"timeout": 2.0, "retry_timeout": 0.01, "max_response_bytes": MOST_BYTES}
_POLLED = 100_000

_WORDS = (
    *("\x1b[31m", "\x1b]8;;http://evil.test\x07", "\x1b]0;title\x1b\\", "\x9b2J", "\x90q\x9c", "\x1b(0"),
    *("\r\n", "\x08", "\x7f", "\0", "\u2028", "\u202e", "\u2066", "\u200b", "\ufeff", "\u3164", "\U000e0041"),
    *("a", " ", "<b>", "[x](http://evil.test)", "|", "\ud800", KEY, MARK, "nk_live_", "\\u006b", "x" * 300),
)
texts = st.lists(st.sampled_from(_WORDS) | st.text(st.characters(codec=None), max_size=5), max_size=8).map(
    "".join
)
_NAMES = (
    "id",
    "status",
    "error",
    "progress",
    "createdAt",
    "startedAt",
    "completedAt",
    "code",
    "message",
    "result",
)


@st.composite
def dense(draw: st.DrawFn) -> bytes:
    """Draw a body of tiny values, of one long text, or of both, cut anywhere or whole."""
    units = st.sampled_from([*VALUES.values()]) | st.sampled_from([*LETTERS.values()]).map(
        lambda b: b'"%b",' % b
    )
    begin = draw(st.sampled_from([b'{"status":"running","progress":[', b'{"result":[', b"[", b'{"error":["']))
    end = draw(st.sampled_from([b'0],"status":"completed"}', b"0]}", b'"', b"", rb'"\ud800"]}']))
    size = draw(st.sampled_from([1_000, 60_000, 300_000, MOST_BYTES - 1, 2 * MOST_BYTES]))
    body = filled(begin, b"".join(draw(st.lists(units, min_size=1, max_size=4))), end, size)
    return body[: draw(st.sampled_from([len(body), len(body) // 2, len(body) - 1]))]


@st.composite
def transferred(draw: st.DrawFn) -> bytes:
    """Draw a response with a dense body: packed in members with a tail or not; its length may be a lie."""
    body, headers = draw(dense()), []
    if draw(st.booleans()):
        parts = draw(st.integers(1, 3))
        step = len(body) // parts + 1
        body = b"".join(gzip.compress(body[at : at + step], 1) for at in range(0, len(body), step))
        tail = draw(
            st.sampled_from([b"", b"\0", b"\1", gzip.compress(b""), gzip.compress(b" "), b"\x1f\x8b\x08"])
        )
        body += tail * draw(st.sampled_from([1, 500, 20_000]))
        headers.append(draw(st.sampled_from(["Content-Encoding: gzip", "Content-Encoding: GZIP", "X-A: a"])))
    lie = draw(st.sampled_from([None, None, None, 0, 1, len(body) // 2, len(body) - 1, 10**30, -1]))
    status = draw(st.sampled_from(["200 OK", "200 OK", "202 Accepted", "400 No", "404 No", "503 No"]))
    return http(body, *headers, "Connection: close", status=status, length=lie)


@pytest.fixture(autouse=True)
def _no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "SHORT_RETRY_WINDOW", 0.0)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("state_only", [False, True])
def test_what_a_response_costs(driver: str, state_only: bool) -> None:
    """A response that is dense, packed and of a wrong length takes bounded memory, and ends as any other."""
    # What is sent, and sent again in parts, is in the same process, and so in the peak.
    most = 3 * MOST_BYTES if state_only else 9 * MOST_BYTES
    with (
        RawServer(lambda _: ()) as server,
        client_of(driver, **_OPTIONS, api_key=KEY, base_url=server.base_url) as client,
    ):
        job = client.flow(FLOW).attach("job-1")

        @fuzzed(0.25)
        @given(transferred())
        def check(response: bytes) -> None:
            chunks = [response[at : at + 65_536] for at in range(0, len(response), 65_536)]
            server.response = lambda _: chunks
            tracemalloc.start()
            try:
                if state_only:
                    watched = job.watch(timeout=2, max_poll_bytes=_POLLED)
                    next(iter(watched))
                else:
                    job.status()
            except NoukaiError as error:
                assert MARK not in str(error)
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            assert peak < most

        check()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("state_only", [False, True])
def test_the_worst_of_each_kind(driver: str, state_only: bool) -> None:
    """Each of the responses that the benchmark measures ends in a status or in one of our errors."""
    for response in responses(MOST_BYTES // 2).values():
        with (
            RawServer(lambda _, response=response: [response]) as server,
            client_of(driver, **_OPTIONS, api_key=KEY, base_url=server.base_url) as client,
        ):
            job = client.flow(FLOW).attach("job-1")
            try:
                status = (
                    next(iter(job.watch(timeout=2, max_poll_bytes=_POLLED))) if state_only else job.status()
                )
                assert isinstance(status, JobStatus)
            except NoukaiError as error:
                assert str(error).isprintable()


def shown(value: JobStatus | RunTrace) -> list[str]:
    """Return all that logs and messages show of what a server said."""
    if isinstance(value, RunTrace):
        steps = [text for step in value.steps for text in (step.id, step.status, step.model)]
        return [text for text in (value.status, *steps) if text is not None]
    lines = [
        value.id,
        value.state,
        value.created_at,
        value.started_at,
        value.completed_at,
        value.progress_text,
    ]
    try:
        value.result_or_raise()
    except NoukaiError as error:
        lines.append(str(error))
    return [line for line in lines if line is not None]


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_people_see(driver: str) -> None:
    """Whatever a server writes into any field, what people see is one line, printable and without the key."""
    with (
        RawServer(lambda _: ()) as server,
        client_of(driver, **_OPTIONS, api_key=KEY, base_url=server.base_url) as client,
    ):
        job = client.flow(FLOW).attach("job-1")

        @fuzzed()
        @given(
            st.dictionaries(st.sampled_from(_NAMES), texts),
            texts,
            st.sampled_from(["200 OK", "400 No", "500 No"]),
            st.sampled_from(["{}", '{"detail":{}}', '{"steps":[{}]}', '{"progress":{"a":{}}}']),
        )
        def check(fields: dict[str, str], word: str, status: str, shape: str) -> None:
            fields.setdefault("status", "failed")
            inner = json.dumps({**fields, "stepId": word, "modelUsed": word})
            outer = json.loads(shape.replace("{}", inner))
            outer.setdefault("status", "failed")
            header = f"X-Request-ID: {one_line(word)}".encode("ascii", "replace").decode()
            server.response = lambda _: [
                http(json.dumps(outer).encode(), header, "Connection: close", status=status)
            ]
            for act in (job.status, job.trace):
                try:
                    lines = shown(act())
                except NoukaiError as error:
                    lines = [str(error), str(error.request_id), str(error.code)]
                for line in lines:
                    assert line.isprintable()
                    assert MARK not in line
                    assert len(line) < 3_000

        check()
