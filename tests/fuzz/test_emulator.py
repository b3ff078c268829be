"""Any request to the local Noukai gets an intended response: never an internal error, never a hang."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import NamedTuple
from urllib.parse import quote

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from noukai_core.emulator import Emulator
from noukai_core.emulator._fault_responses import ConnectionDroppedError
from tests.fuzz.nonsense import KEY, fuzzed, values

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

FLOW = "acme/spelling/grade-3"
UUID = "6d1c7ea4-5a0c-4a57-9d0a-3a7c5a7f9f10"
JOB = "the-first-job"


class Request(NamedTuple):
    """A request; in its path, `JOB` stands for the id of the first job."""

    method: str
    path: str
    headers: dict[str, bytes]
    body: bytes


_PATHS = (
    *(f"/api/v1/seq/{FLOW}/jobs", f"/api/v1/seq/{FLOW}/jobs", f"/api/v1/seq/{FLOW}/[]/jobs"),
    *("/api/v1/seq/[]/[]/[]/jobs", f"/api/v1/seq/{FLOW}/jobs/[]", f"/api/v1/seq/{FLOW}/jobs/[]/cancel"),
    *(f"/api/v1/seq/{FLOW}/runs/[]/trace", "/api/v1/flow-runs/[]/trace", "/api/v1/seq/sessions/[]"),
    *("/api/v1/keys/verify", "/api/v1/flow-runs", "/api/v1/flow-runs?limit=[]&status=[]&flow_id=[]"),
    *("/api/v1/flow-runs?limit=[]", "/api/v1/[]", "/[]", "/_emulator/[]", "/_emulator/reset"),
    *("/_emulator/script", "/_emulator/script", "/_emulator/jobs", "/_emulator/jobs/[]"),
    *("/_emulator/jobs/[]/finish", "/_emulator/jobs/[]/progress", "/_emulator/faults"),
    *("/_emulator/requests?kind=[]&job_id=[]", "/_emulator/counts?job_id=[]"),
    *("/_emulator/wait?kind=poll&count=[]&timeout=0", "/_emulator/wait?kind=submit&count=1&timeout=-[]"),
)
_SEGMENTS = st.one_of(
    st.just(JOB),
    st.just(JOB),
    st.sampled_from([UUID, "v0", "v99999999999", ".", "..", "a" * 300, "9" * 5000, "-1", "1", "poll", "nan"]),
    st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: quote(text, safe="")),
    st.binary(max_size=4).map(quote),
)
_SUBMISSION = ("message", "parameters", "blockOverrides", "trace", "callbackUrl", "callbackEvents", "tools")
_SPECIFICATION = (
    *("flow", "outcome", "after_seconds", "after_polls", "result", "result_bytes", "error"),
    *("progress", "steps", "visible_after_seconds", "missing"),
)
_FAULT = (
    *("kind", "on", "times", "flow", "job_id", "probability", "seed", "status", "code", "message", "body"),
    *("retry_after", "takes_effect", "reset", "content_type", "location", "of"),
)
_WORDS = (
    *("completed", "failed", "cancelled", "never", "*", "grade-3", FLOW, "https://a.test/", "any", "poll"),
    *("status", "drop_after", "truncated", "nonsense", "redirect", "mixed", "http-date", "html", "a\r\nb: c"),
)
_NUMBERS = ("0", "0.5", "1", "3", "204", "304", "503", "1e300", "1" + "0" * 400, "true")
_USUAL = (
    '{"message":"hello"}',
    '{"parameters":{"_emulator":{"after_polls":1,"result":{}}}}',
    '{"flow":"*","after_seconds":0}',
    '{"flow":"grade-3","after_polls":1,"steps":[{}],"progress":[{}]}',
    '{"kind":"status","status":204}',
    '{"kind":"mixed","of":[{"kind":"drop_before"}]}',
)
_some = st.one_of(
    values, st.sampled_from(_WORDS).map(json.dumps), st.sampled_from((*_NUMBERS, *_USUAL, f"[{_USUAL[-1]}]"))
)
_bodies = st.one_of(
    st.sampled_from(_USUAL),
    *(
        st.dictionaries(st.sampled_from(names), _some, max_size=4).map(
            lambda named: "{" + ",".join(f'"{name}":{text}' for name, text in named.items()) + "}"
        )
        for names in (_SUBMISSION, _SPECIFICATION, _FAULT)
    ),
    values,
).map(lambda text: text.encode("utf-8", "surrogatepass"))


@st.composite
def _requests(draw: st.DrawFn) -> Request:
    first, *others = draw(st.sampled_from(_PATHS)).split("[]")
    path = first + "".join(draw(_SEGMENTS) + part for part in others)
    headers = {"Authorization": f"Bearer {KEY}".encode()}
    for name in draw(
        st.lists(st.sampled_from(["Authorization", "X-Session-Id", "Idempotency-Key"]), max_size=2)
    ):
        headers[name] = draw(
            st.sampled_from([b"", b"Bearer", b"Bearer x", UUID.encode()]) | st.binary(max_size=9)
        )
    method = draw(st.sampled_from(["GET", "GET", "POST", "POST", "POST", "DELETE", "PUT", "HEAD"]))
    return Request(method, path, headers, draw(_bodies | st.binary(max_size=30)))


async def send_all(requests: list[Request]) -> list[int]:
    """Send requests to a fresh local Noukai, and return their statuses; 0 for a dropped connection."""
    emulator = Emulator()
    statuses: list[int] = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(emulator.app)) as client:
        first = await client.post(
            f"http://emulator/api/v1/seq/{FLOW}/jobs",
            json={"message": "hello"},
            headers={"Authorization": f"Bearer {KEY}"},
        )
        job_id = first.json()["executionId"]
        for method, path, headers, body in requests:
            url = httpx.URL("http://emulator").copy_with(raw_path=path.replace(JOB, job_id).encode())
            try:
                response = await client.request(method, url, headers=list(headers.items()), content=body)
                statuses.append(response.status_code)
            except ConnectionDroppedError:
                statuses.append(0)
    return statuses


@fuzzed(2)
@given(st.lists(_requests(), min_size=1, max_size=8))
def test_any_requests(requests: list[Request]) -> None:
    """No sequence of requests causes an internal error, or a response as if there had been one."""
    statuses = asyncio.run(asyncio.wait_for(send_all(requests), 20))
    if not any(request.path == "/_emulator/faults" for request in requests):
        assert all(200 <= status < 500 for status in statuses)


_LINES = st.sampled_from(
    [
        *(
            f"GET /api/v1/seq/{FLOW}/jobs/x HTTP/1.1\r\n",
            f"POST /api/v1/seq/{FLOW}/jobs HTTP/1.1\r\n",
            "\r\n",
        ),
        *("GET /\xff HTTP/1.1\r\n", "GET http://[ HTTP/1.1\r\n", "GET * HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n"),
        *(
            "Host: a\r\n",
            f"Authorization: Bearer {KEY}\r\n",
            "Content-Length: 9\r\n",
            "Content-Length: x\r\n",
        ),
        *(
            "Transfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n",
            "0\r\n\r\n",
            '{"a":"b"}',
            "Expect: 100-continue\r\n",
        ),
        *("Upgrade: websocket\r\n", "Connection: upgrade\r\n", "X: \xff\x00\r\n", " folded\r\n"),
    ]
).map(lambda line: line.encode("latin-1"))


def test_any_bytes(emulator: Emulator) -> None:
    """Whatever bytes a connection sends, the local Noukai responds to the next one as usual."""
    host, port = emulator.base_url.split("/")[2].split(":")

    @fuzzed()
    @given(st.lists(_LINES | st.binary(max_size=20), max_size=10))
    @example([b"GET / HTTP/1.1\r\n", *[b"X-A: a\r\n"] * 20_000])
    def check(lines: list[bytes]) -> None:
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            try:
                connection.sendall(b"".join(lines))
                connection.shutdown(socket.SHUT_WR)
                while response := connection.recv(65536):
                    assert b" 500 " not in response
            except OSError as fault:
                assert not isinstance(fault, TimeoutError)
        assert emulator.control.counts()["cancel"] == 0

    check()
