"""Responses that are made to cost a client memory or time: HTTP that ends, but the worst of its kind."""

from __future__ import annotations

import gzip

MEGABYTE = 1024 * 1024
_RUNNING = b'{"status":"running","progress":'
_STATE = b'{"status":"running"}'
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

VALUES = {
    "lists": b"[],",
    "lists in lists": b"[[]],",
    "objects": b"{},",
    "objects in objects": b'{"a":{}},',
    "numbers": b"1,",
    "floats": b"1e5,",
    "infinities": b"-Infinity,",
    "long numbers": b"9" * 4300 + b",",
    "texts": b'"",',
    "escapes": b'"\\/",',
}
"""What a dense list repeats."""

LETTERS = {
    "letters": b"x",
    "emoji": "\U0001f600".encode(),
    "escaped letters": rb"\u001b",
    "escape sequences": rb"\u001b]8;;",
    "escaped backslashes": rb"\\",
    "halves of surrogate pairs": rb"\ud800",
    "marks of structure": b",{[",
    "keys": b"nk_live_",
}
"""What a long text repeats."""


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """Return a response; its length is what it says, or the true one."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def packed(body: bytes) -> bytes:
    """Return a gzipped response."""
    return http(gzip.compress(body), "Content-Encoding: gzip")


def filled(begin: bytes, unit: bytes, end: bytes, size: int) -> bytes:
    """Repeat a unit between a beginning and an end up to a size."""
    return begin + unit * ((size - len(begin) - len(end)) // len(unit)) + end


def bodies(size: int) -> dict[str, bytes]:
    """Return bodies of about this size, each valid JSON unless its name says otherwise."""
    dense = {f"list of {name}": filled(_RUNNING + b"[", unit, b"0]}", size) for name, unit in VALUES.items()}
    texts = {
        f"text of {name}": filled(_RUNNING + b'"', unit, rb'\ud800"}', size) for name, unit in LETTERS.items()
    }
    names = b",".join(b'"%x":1' % number for number in range(size // 11))
    return {
        **dense,
        **texts,
        "many names": _RUNNING + b"{" + names + b"}}",
        "one name many times": filled(b"{", b'"a":1,', _STATE[1:], size),
        "white space": filled(b"{", b" ", _STATE[1:], size),
        "long state": filled(b'{"status":"', b"x", b'"}', size),
        "long error": filled(b'{"status":"failed","error":"', rb"\u001b[31m", b'"}', size),
        "long time": filled(b'{"status":"running","createdAt":"', rb"\u202e", b'"}', size),
        "large result": filled(b'{"status":"completed","result":"', b"x", b'"}', size),
        "nesting": _RUNNING + b"[" * 190 + b"]" * 190 + b"}",
        "no JSON": b"\xff" * size,
    }


def transfers() -> dict[str, bytes]:
    """Return responses whose cost is in how they are sent."""
    begin, empty = gzip.compress(_STATE), gzip.compress(b"")
    many = 40_000
    return {
        "gzip members": http(begin + empty * 9_000, "Content-Encoding: gzip"),
        "too many gzip members": http(begin + empty * many, "Content-Encoding: gzip"),
        "zeros after gzip": http(begin + b"\0" * (8 * MEGABYTE), "Content-Encoding: gzip"),
        "filler after gzip": http(begin + b"\1" * (8 * MEGABYTE), "Content-Encoding: gzip"),
        "bomb": packed(filled(_RUNNING + b'"', b"x", b'"}', 64 * MEGABYTE)),
        "chunks of a byte": _CHUNKED + b"1\r\n \r\n" * (10 * many) + b"0\r\n\r\n",
        "interim responses": b"HTTP/1.1 100 Continue\r\n\r\n" * (2 * many) + http(_STATE),
        "headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: a\r\n" * many + b"\r\n",
        "trailers": _CHUNKED + b"0\r\n" + b"X-A: a\r\n" * many + b"\r\n",
        "length too short": http(_STATE, length=5),
        "two lengths": http(_STATE, "Content-Length: 7"),
        "large error": http(b"\x1b[31m" * (2 * MEGABYTE), status="500 Error"),
    }


def responses(size: int) -> dict[str, bytes]:
    """Return the worst response of each kind, with bodies of about this size."""
    return {name: http(body) for name, body in bodies(size).items()} | transfers()
