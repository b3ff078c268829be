"""Any response that a server, a proxy or a fault on the way can give, as strategies of hypothesis."""

from __future__ import annotations

import gzip
import json
import os
import ssl
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import httpx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

MARK = "MARKED7fuzz9secret"
KEY = f"nk_test_{MARK}"


def fuzzed(share: float = 1.0) -> settings:
    """Let a test try a share of `FUZZ_EXAMPLES`; by default, the same 120 in every run."""
    return settings(
        max_examples=max(1, int(int(os.environ.get("FUZZ_EXAMPLES", "120")) * share)),
        derandomize="FUZZ_EXAMPLES" not in os.environ,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


class Call(NamedTuple):
    """What the responses to one kind of call are made of.

    Attributes:
        good: Valid responses, without which no decision gets beyond its first step.
        fields: What the core reads of the response.
        inner: What it reads of the objects in the response's list.
    """

    good: tuple[str, ...]
    fields: tuple[str, ...]
    inner: tuple[str, ...] = ("a",)


CALLS = {
    "submit": Call(
        ('{"executionId":"job-1","status":"started"}',), ("executionId", "jobId", "id", "status", "state")
    ),
    "poll": Call(
        ('{"status":"running"}', '{"status":"pending","progress":{"a":1}}', '{"status":"paused"}'),
        ("status", "state", "result", "error", "progress", "createdAt", "started_at", "completedAt"),
    ),
    "cancel": Call(("{}", '{"detail":{"code":"JOB_NOT_FOUND"}}'), ("status",)),
    "session": Call(
        ('{"executions":[]}', '{"executions":[{"executionId":"job-1"}]}', '{"detail":{"code":"X"}}'),
        ("executions", "sessionId"),
        ("executionId", "id", "slug", "triggerType", "startedAt", "started_at"),
    ),
    "verify": Call(
        ("{}",), ("org", "orgSlug", "organization", "project", "project_name", "environment", "env")
    ),
    "trace": Call(
        ('{"steps":[]}', '{"steps":[{"costUsd":"9e999999"},{"costUsd":"9e999999"}]}'),
        ("flowRun", "flow_run", "steps", "durationMs"),
        ("stepId", "status", "attempt", "durationMs", "tokens", "total", "costUsd", "cost_usd"),
    ),
}

_WORDS = (
    *("pending", "running", "completed", "failed", "cancelled", "Queued", "started", "paused", ""),
    *("job-1", "job/1", "..", "a" * 300, "jöb", "1", "\ud800", KEY, f"Bearer {KEY}\n"),
)
_DEPTHS = (50, 195, 205, 450, 900, 940, 960, 980, 20_000)
_TOKENS = (
    *("null", "true", "false", "0", "-0", "1", "-1", "1.5", "NaN", "Infinity", "-Infinity"),
    *("1e999", "-1e999", "1e308", "5e-324", "9e999999", "1e1000000", "9" * 4300, "9" * 4301, "-" + "9" * 400),
    *('"9e999999"', '"NaN"', '"-1e400"', '"sNaN"', '"12"', '"2026-01-01T00:00:00Z"', '"99999-13-45"'),
    *(r'"\ud800"', r'"\udfff\ud800"', r'"\\ud800"', r'"\u0000"', '"' + "x" * 3000 + '"'),
    *("[]", "{}", '[{"a":1,"a":2}]'),
    *("[" * depth + "0" + "]" * depth for depth in _DEPTHS),
    *('{"a":' * depth + "0" + "}" * depth for depth in _DEPTHS),
)
_PROBLEM = ("detail", "error", "code", "message", "loc", "msg")


def _object(names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Text of a JSON object, in which a name may come twice."""
    members = st.lists(st.tuples(names, values), max_size=5)
    return members.map(lambda pairs: "{" + ",".join(f"{json.dumps(n)}:{v}" for n, v in pairs) + "}")


def _list(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(values, max_size=3).map(lambda items: f"[{','.join(items)}]")


_texts = st.text(st.characters(codec=None), max_size=12)
_scalars = st.one_of(
    st.sampled_from(_TOKENS), st.sampled_from(_WORDS).map(json.dumps), _texts.map(json.dumps)
)
values = st.recursive(_scalars, lambda inner: _list(inner) | _object(_texts, inner), max_leaves=4)
_problems = _object(st.sampled_from(_PROBLEM), _scalars)


def _json(call: Call) -> st.SearchStrategy[str]:
    """JSON that a server that is well may send, that is close to that, or that is anything."""
    inner = _object(st.sampled_from(call.inner), _scalars)
    near = st.one_of(values, _scalars, inner, _list(inner), _problems, _list(_problems))
    shaped = _object(st.sampled_from(call.fields + _PROBLEM), near)
    return st.one_of(st.sampled_from(call.good), shaped, shaped, values)


@st.composite
def _bodies(draw: st.DrawFn, call: Call) -> bytes:
    if not draw(st.integers(0, 4)):
        return draw(
            st.binary(max_size=60) | st.sampled_from([b"", b"<html>", b'"\xed\xa0\x80"', b"\xef\xbb\xbf{}"])
        )
    encoding = draw(st.sampled_from(["utf-8"] * 6 + ["utf-16", "utf-32", "utf-8-sig"]))
    body = draw(_json(call)).encode(encoding, "surrogatepass")
    return body if draw(st.integers(0, 7)) else body[: len(body) // 2]


_RETRY_AFTER = (
    *("0", "1", "2.5", "120", "999999999", "9999999999", "-1", "1e3", "nan", "inf", "٣", "0x10"),
    *("Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 31 Dec 9999 23:59:59 -2359", "Mon, 01 Jan 0001 00:00:00 +2359"),
    *("Mon, 32 Foo 2026 99:99:99 GMT", f"Mon, 01 Jan {'9' * 30} 00:00:00 GMT", "9" * 5000, ", , ,", "1 1 1"),
)
_HEADERS = {
    "Retry-After": [text.encode() for text in _RETRY_AFTER],
    "Content-Type": [b"application/json", b"text/html; charset=utf-16", b";;;="],
    "Content-Encoding": [b"gzip", b"GZIP", b"deflate", b"br", b"zstd", b"identity", b"gzip, gzip", b"x" * 50],
    "Content-Length": [b"0", b"-1", b"99999999999999999999", b"x"],
    "X-Request-ID": [b"req-1", KEY.encode(), b"r" * 5000],
    "Location": [b"https://elsewhere.test/", KEY.encode(), b"//"],
    "Set-Cookie": [KEY.encode()],
}
_headers = st.lists(
    st.sampled_from(sorted(_HEADERS)).flatmap(
        lambda name: st.tuples(
            st.just(name.encode()), st.sampled_from(_HEADERS[name]) | st.binary(max_size=20)
        )
    ),
    max_size=3,
)
_STATUSES = (
    *(
        200,
        200,
        200,
        200,
        202,
        202,
        204,
        301,
        307,
        400,
        401,
        402,
        403,
        404,
        404,
        409,
        410,
        413,
        422,
        425,
        429,
    ),
    *(500, 501, 502, 503),
)
_FAULTS = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.RemoteProtocolError,
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
    ssl.SSLError,
)


@dataclass(frozen=True)
class Given:
    """A recipe that gives each request a new response, or a fault in place of it or its end."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    chunks: tuple[bytes, ...]
    fault: type[Exception] | None = None

    def respond(self) -> httpx.Response:
        """Respond to a request."""
        if self.fault is not None and not self.chunks:
            raise self.fault(f"the fault quotes {KEY}")
        return httpx.Response(
            self.status, headers=list(self.headers), stream=_Stream(self.chunks, self.fault)
        )


class _Stream(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, chunks: tuple[bytes, ...], fault: type[Exception] | None) -> None:
        self._chunks = chunks
        self._fault = fault

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks
        if self._fault is not None:
            raise self._fault(f"the fault quotes {KEY}")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


_PACK = {b"gzip": gzip.compress, b"deflate": zlib.compress}


@st.composite
def responses(draw: st.DrawFn, kind: str) -> Given:
    """Draw a response to one kind of call."""
    headers = tuple(draw(_headers))
    body = draw(_bodies(CALLS[kind]))
    if draw(st.booleans()):
        encodings = b",".join(value for name, value in headers if name == b"Content-Encoding")
        for encoding in encodings.lower().split(b","):
            body = _PACK.get(encoding.strip(), bytes)(body)
    cut = draw(st.integers(0, 3)) and len(body) // 2
    chunks = tuple(part for part in (body[:cut], body[cut:]) if part)
    fault = draw(st.sampled_from(_FAULTS)) if not draw(st.integers(0, 15)) else None
    return Given(draw(st.sampled_from(_STATUSES) | st.integers(100, 999)), headers, chunks, fault)


def scripts(kind: str) -> st.SearchStrategy[list[Given]]:
    """Draw some responses to one kind of call; the last is repeated."""
    return st.lists(responses(kind), min_size=1, max_size=3)
