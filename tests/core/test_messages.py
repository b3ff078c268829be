"""A request and its response as they are transferred, over any transport."""

from __future__ import annotations

import gzip
import sys
import zlib

import pytest

from noukai_core._http.messages import HttpRequest, ResponseReader, TooLargeError


def incoming(*headers: tuple[bytes, bytes]) -> ResponseReader:
    return ResponseReader(200, headers, 1000)


def test_headers_that_come_twice_are_joined() -> None:
    """As HTTP has it: none of two values is believed alone."""
    response = incoming((b"Retry-After", b"5"), (b"retry-after", b"60")).response()
    assert response.headers == {"retry-after": "5, 60"}


@pytest.mark.parametrize("raw", ["café".encode(), "café".encode("latin-1")])
def test_a_request_id_in_either_encoding(raw: bytes) -> None:
    """What a server calls a request can be quoted back to it."""
    assert incoming((b"X-Request-Id", raw)).response().request_id == "café"


def test_a_request_does_not_show_what_is_submitted() -> None:
    """A traceback with local variables shows no inputs of a job."""
    assert "secret" not in repr(HttpRequest("POST", "https://noukai.test", {}, b"secret", 1.0))


def packed(most: int) -> ResponseReader:
    return ResponseReader(200, [(b"Content-Encoding", b"gzip")], most)


@pytest.mark.parametrize("most", [sys.maxsize, 10**30])
def test_gzip_without_a_limit_in_practice(most: int) -> None:
    """A limit beyond every size that this machine knows is a limit like any other."""
    reader = packed(most)
    assert reader.take(gzip.compress(b"{}"))
    assert reader.response().body == b"{}"


def test_gzip_of_many_members() -> None:
    """A body of several gzip members, as parallel packers make, is read whole, however it is cut."""
    body = b"".join(gzip.compress(part) for part in (b'{"a":', b"", b"1}")) + b"\0" * 20
    for size in (1, 7, len(body)):
        reader = packed(1000)
        for begin in range(0, len(body), size):
            reader.take(body[begin : begin + size])
        assert reader.response().body == b'{"a":1}'


def test_no_memory_for_what_follows_a_gzip_member() -> None:
    """What follows the end of the packed body counts as received, and none of it is kept."""
    reader = packed(1_000_000)
    reader.take(gzip.compress(b"{}"))
    with pytest.raises((TooLargeError, zlib.error)):
        for _ in range(100):
            reader.take(b"\0" * 65536)
    reader = packed(1_000_000)
    reader.take(gzip.compress(b"{}"))
    with pytest.raises(zlib.error):
        reader.take(b"filler" * 10_000)


def test_empty_gzip_members_end() -> None:
    """Empty members are rejected before they cost seconds."""
    reader, member = packed(64 * 1024 * 1024), gzip.compress(b"")
    with pytest.raises(zlib.error, match="members"):
        reader.take(member * 20_000)


def test_a_gzip_body_that_ends_early() -> None:
    """Half of a compressed body is not accepted as all of it."""
    reader = packed(1000)
    reader.take(gzip.compress(b'{"status": "completed"}')[:-9])
    with pytest.raises(zlib.error, match="early"):
        reader.response()


def test_a_gzip_body_is_unpacked_to_its_limit() -> None:
    """A body that decompresses to more than is allowed is rejected at that point."""
    reader = packed(1000)
    with pytest.raises(TooLargeError):
        reader.take(gzip.compress(bytes(10_000_000)))
