"""Responses that are made to cost memory or time, to fool a reader, or to show the key, over a socket."""

from __future__ import annotations

import gzip
import json
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from noukai_core import (
    AsyncNoukai,
    InvalidInputError,
    InvalidResponseError,
    JobFailedError,
    JobState,
    Noukai,
    NoukaiError,
    ResponseTooLargeError,
    one_line,
)
from noukai_core._api import bounded_json
from noukai_core._engine import schedule
from tests.fuzz.drivers import client_of
from tests.fuzz.raw_server import ENDLESS, RawServer

FLOW = "acme/spelling/grade-3"
SECRET = "abcdefghijklmnopqrstuvwxyz012345"
KEY = f"nk_test_12345678_{SECRET}"
MEGABYTE = 1024 * 1024
HOSTILE = "\x1b[31mred\x1b[0m\x1b]8;;http://evil.test\x07link\x1b]8;;\x07\r\nforged\u2028line\u202etxt\u200bx\x9b2J\x7f"


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture(autouse=True)
def _no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "SHORT_RETRY_WINDOW", 0.0)


@contextmanager
def job_of(response: bytes, driver: str, **options: Any) -> Iterator[Any]:
    with (
        RawServer(lambda _: [response]) as server,
        client_of(driver, api_key=KEY, base_url=server.base_url, retry_timeout=0, **options) as client,
    ):
        yield client.flow(FLOW).attach("job-1")


DENSE = {
    "lists": b"[],",
    "objects": b"{},",
    "numbers": b"1.5,",
    "pairs": b'{"a":1},',
    "lists in lists": b"[[[1]]],",
    "objects in objects": b'{"a":{}},',
}


@pytest.mark.parametrize("kind", DENSE)
def test_memory_of_tiny_values(driver: str, kind: str) -> None:
    """A response of tiny values takes at most five times its size, or it is refused before it is parsed."""
    size = 4 * MEGABYTE
    body = b'{"status":"completed","result":[' + DENSE[kind] * (size // len(DENSE[kind])) + b"0]}"
    with job_of(http(body), driver, max_response_bytes=5 * MEGABYTE) as job:
        tracemalloc.start()
        try:
            with pytest.raises(ResponseTooLargeError, match="too many values"):
                job.status()
            assert tracemalloc.get_traced_memory()[1] < 5 * size
        finally:
            tracemalloc.stop()


def test_separators_in_text_are_no_values(driver: str) -> None:
    """A long text of commas and braces is one value."""
    text = '1,{"2",[3],' * 200_000
    body = json.dumps({"status": "completed", "result": text}).encode()
    with job_of(http(body), driver, max_response_bytes=5 * MEGABYTE) as job:
        assert job.status().result.output == text


def test_a_number_without_end(driver: str) -> None:
    """A whole number of a million digits is refused, not computed."""
    body = b'{"status":"completed","result":' + b"7" * MEGABYTE + b"}"
    with job_of(http(body), driver) as job, pytest.raises(InvalidResponseError):
        job.status()


def test_half_a_surrogate_pair(driver: str) -> None:
    """A text that was cut in the middle of a pair costs no result: the half is replaced."""
    body = rb'{"status":"completed","result":["\ud83d", "\\ud83d", "\ud83d\ude00"]}'
    with job_of(http(body), driver) as job:
        assert job.status().result.output == ["\ufffd", "\\ud83d", "\U0001f600"]


HALVES = {
    "halves": rb"\ud800",
    "pairs": rb"\ud83d\ude00",
    "escaped backslashes": rb"\\",
    "escaped backslashes in text": rb"\\x",
}


@pytest.mark.parametrize("kind", HALVES)
def test_memory_of_halves_of_surrogate_pairs(driver: str, kind: str) -> None:
    """To replace halves of surrogate pairs takes no more memory than a response may."""
    size = 2 * MEGABYTE
    unit = HALVES[kind]
    body = b'{"status":"running","progress":"' + unit * (size // len(unit)) + rb'\ud800"}'
    with job_of(http(body), driver, max_response_bytes=5 * MEGABYTE) as job:
        tracemalloc.start()
        try:
            assert job.status().state == JobState.RUNNING
            assert tracemalloc.get_traced_memory()[1] < 5 * size
        finally:
            tracemalloc.stop()


def test_memory_of_many_texts_with_halves(driver: str) -> None:
    """The copy in which halves are replaced counts among what a response may take."""
    size = 2 * MEGABYTE
    unit = rb'\ud800\ud800\ud800","'
    body = b'{"status":"running","error":["' + unit * (size // len(unit)) + b'"]}'
    with job_of(http(body), driver, max_response_bytes=size + MEGABYTE) as job:
        tracemalloc.start()
        try:
            with pytest.raises(InvalidResponseError):
                job.status()
            assert tracemalloc.get_traced_memory()[1] < 5 * size
        finally:
            tracemalloc.stop()


def test_what_follows_a_gzip_member(driver: str) -> None:
    """Bytes behind the packed body are refused, and not collected."""
    body = gzip.compress(b'{"status":"running"}') + b"\1" * (4 * MEGABYTE)
    with (
        job_of(http(body, "Content-Encoding: gzip"), driver, max_response_bytes=MEGABYTE) as job,
        pytest.raises(InvalidResponseError),
    ):
        job.status()


def spelled(text: str) -> Iterator[bytes]:
    """The key as JSON may spell it, and in other encodings."""
    plain = json.dumps(text)
    yield plain.encode()
    yield plain.replace("/", r"\/").encode()
    yield ('"' + "".join(f"\\u{ord(c):04x}" for c in text) + '"').encode()
    yield ('"' + "".join(f"\\u{ord(c):04X}" if i % 3 else c for i, c in enumerate(text)) + '"').encode()


SPELLINGS = list(spelled(f"key {KEY} secret {SECRET}"))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("place", ["result", "progress", "error", "id", "created_at", "status", "name"])
def test_the_key_in_any_spelling(driver: str, spelling: bytes, place: str) -> None:
    """A response that repeats the key leaves no trace of it in a status or an error, however it spells it."""
    members = {"status": b'"failed"', place: spelling}
    fields = b",".join(json.dumps(name).encode() + b":" + value for name, value in members.items())
    body = b"{" + fields + (b"," + spelling + b":1" if place == "name" else b"") + b"}"
    with job_of(http(body), driver) as job:
        status = job.status()
        assert SECRET not in repr(status)
        with pytest.raises(NoukaiError) as caught:
            status.result_or_raise()
        assert SECRET not in str(caught.value) + repr(vars(caught.value))


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "502 Bad Gateway"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32"])
def test_the_key_in_an_error(driver: str, status: str, encoding: str) -> None:
    """An error's message repeats no key, whether the response was JSON or not, and in any encoding."""
    for text in (f"no JSON {KEY}", *(f'{{"detail":{{"message":{s.decode()}}}}}' for s in SPELLINGS)):
        with job_of(http(text.encode(encoding), status=status), driver) as job:
            with pytest.raises(NoukaiError) as caught:
                job.status()
            shown = str(caught.value).replace("\\\\", "\\")
            assert SECRET not in shown
            assert r"\u006" not in shown
            assert "k\0e" not in shown


NOT_HTTP = [
    b"NONSENSE %s\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX\0%s: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: %s\0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n",
]


@pytest.mark.parametrize("repeated", [KEY, SECRET])
@pytest.mark.parametrize("response", NOT_HTTP)
def test_the_key_in_what_is_not_http(driver: str, response: bytes, repeated: str) -> None:
    """The error for a response that is not HTTP quotes it without the key, and without its secret part."""
    with job_of(response % repeated.encode(), driver, timeout=5) as job:
        with pytest.raises(NoukaiError) as caught:
            job.status()
        assert SECRET not in str(caught.value)


def test_what_a_cancel_returns_is_not_kept(driver: str) -> None:
    """Of the response to a cancel, only the status is needed: its body is not collected."""
    with (
        RawServer(ENDLESS["body"]) as server,
        client_of(driver, api_key=KEY, base_url=server.base_url) as client,
    ):
        tracemalloc.start()
        try:
            client.flow(FLOW).attach("job-1").cancel()
            assert tracemalloc.get_traced_memory()[1] < MEGABYTE
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_responses_are_utf_8(driver: str, encoding: str) -> None:
    """JSON in another encoding is refused."""
    body = '{"status": "completed", "result": "é"}'.encode(encoding)
    with job_of(http(body), driver) as job, pytest.raises(InvalidResponseError):
        job.status()


def test_text_for_people_and_for_code(driver: str) -> None:
    """Code gets a job's error as it came; the exception's message is one line without control characters."""
    body = json.dumps({"status": "failed", "error": HOSTILE, "createdAt": HOSTILE}).encode()
    with job_of(http(body), driver) as job:
        status = job.status()
        assert status.error == HOSTILE
        assert status.created_at.isprintable()
        with pytest.raises(JobFailedError) as caught:
            status.result_or_raise()
        assert str(caught.value).isprintable()
        assert "red link forged line txt x" in " ".join(str(caught.value).split())


def test_an_error_message_of_the_server(driver: str) -> None:
    """A refusal is shown on one line, however the server writes it, and its length is bounded."""
    body = json.dumps({"detail": {"code": HOSTILE, "message": HOSTILE + "x" * MEGABYTE}}).encode()
    response = http(body, "X-Request-ID: \x1b]0;title\x07id", status="400 Bad Request")
    with job_of(response, driver) as job:
        with pytest.raises(NoukaiError) as caught:
            job.status()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("shape", ["text", "object", "list", "names"])
def test_progress_and_errors_are_bounded(driver: str, shape: str) -> None:
    """A status keeps about 64 kB of a job's progress and of its error, however long they are."""
    value: Any = {
        "text": "x" * (2 * MEGABYTE),
        "object": {f"key {i}": "y" * 50 for i in range(20_000)},
        "list": ["z" * 100] * 20_000,
        "names": {"n" * MEGABYTE: 1},
    }[shape]
    body = json.dumps({"status": "failed", "progress": value, "error": value}).encode()
    with job_of(http(body), driver) as job:
        status = job.status()
        assert len(json.dumps(status.progress)) < 100_000
        assert len(status.error) < 100_000


@pytest.mark.parametrize("job_id", ["jöb", "job\u202e1", "job 1", "job\x1b[31m"])
def test_job_ids_are_printable_ascii(job_id: str) -> None:
    """An id that a person could misread is refused."""
    with Noukai(KEY) as client, pytest.raises(InvalidInputError, match="job_id"):
        client.flow(FLOW).attach(job_id)


LONG = b'"' + b"x" * (2 * MEGABYTE) + b'"'


@pytest.mark.parametrize("packed", [False, True])
def test_a_wait_for_the_state_alone(driver: str, packed: bool) -> None:
    """Of a long response, only the beginning is read and parsed, and the result is in no status."""
    body = b'{"status":"completed","progress":{"a":1},"result":' + LONG + b"}"
    response = http(gzip.compress(body), "Content-Encoding: gzip") if packed else http(body)
    with job_of(response, driver, max_response_bytes=64 * 1024 * 1024) as job:
        tracemalloc.start()
        try:
            statuses = list(job.watch(timeout=20, max_poll_bytes=100_000))
            assert tracemalloc.get_traced_memory()[1] < 1.5 * MEGABYTE
        finally:
            tracemalloc.stop()
        assert [(s.state, s.progress, s.result) for s in statuses] == [(JobState.COMPLETED, {"a": 1}, None)]
        with pytest.raises(InvalidInputError, match="state only"):
            statuses[0].result_or_raise()


def test_a_state_behind_a_long_result(driver: str) -> None:
    """A response whose beginning does not tell the state ends such a wait, for another to read all of it."""
    with (
        job_of(http(b'{"result":' + LONG + b',"status":"completed"}'), driver) as job,
        pytest.raises(ResponseTooLargeError, match="state"),
    ):
        list(job.watch(timeout=20, max_poll_bytes=100_000))


def test_the_result_of_a_short_response_is_not_kept_either(driver: str) -> None:
    """A wait for the state alone keeps no result."""
    with job_of(http(b'{"result": [1], "status":"completed"}'), driver) as job:
        assert [status.result for status in job.watch(timeout=20, max_poll_bytes=100_000)] == [None]


def test_one_line() -> None:
    """What a person sees has one line, no escape sequence, and nothing that cannot be seen."""
    line = one_line(HOSTILE)
    assert line == "red link forged line txt x"
    assert one_line("nk_li\u200bve_secret12345") != "nk_live_secret12345"
    assert one_line("x" * 10_000, 100) == "x" * 99 + "…"
    assert one_line("héllo 😀") == "héllo 😀"


def test_the_beginning_of_a_dense_response() -> None:
    """For a state alone, only the beginning of a response of very many values is parsed."""
    body = b'{"status":"running","progress":[' + b"{}," * 300_000 + b"{}]}"
    value, more = bounded_json.parse_beginning(body, 64 * MEGABYTE, partial=False)
    assert value["status"] == "running"
    assert more
    assert len(value["progress"]) < 30_000


async def test_a_large_result_is_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop goes on while a large result is parsed."""
    threads: list[threading.Thread] = []
    parse = bounded_json.parse

    def noting(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return parse(*arguments, **options)

    monkeypatch.setattr(bounded_json, "parse", noting)
    for body in (LONG, b'"short"'):
        response = http(b'{"status":"completed","result":' + body + b"}")
        with RawServer(lambda _, response=response: [response]) as server:
            async with AsyncNoukai(KEY, base_url=server.base_url) as client:
                await client.flow(FLOW).attach("job-1").wait()
    assert [thread is threading.main_thread() for thread in threads] == [False, True]
