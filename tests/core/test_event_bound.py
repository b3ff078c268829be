"""The limit of an event in a stream, byte by byte."""

from __future__ import annotations

import pytest

from noukai_core._http.event_stream import EventBound
from noukai_core._http.messages import TooLargeError

STREAM = b"data: 12\r\n\r\ndata: 1234567890\ndata: 2\n\ndata: 3\r\rdata: 4\n\n"


@pytest.mark.parametrize("size", range(1, len(STREAM) + 1))
def test_the_limit_does_not_depend_on_chunks(size: int) -> None:
    """However a stream is divided, each event is cut at its own limit, and keeps the ends of its lines."""
    bound = EventBound(10, 1000)
    chunks = [STREAM[begin : begin + size] for begin in range(0, len(STREAM), size)]
    assert b"".join(map(bound.take, chunks)) == (b"data: 12\r\n\r\ndata: 1234\n\n\ndata: 3\r\rdata: 4\n\n")


def test_a_split_end_of_a_line_is_no_empty_line() -> None:
    """A server cannot evade the limit by dividing the ends of its lines."""
    bound = EventBound(10, 10_000)
    kept = b"".join(bound.take(part) for _ in range(100) for part in (b"data: 1\r", b"\n"))
    assert len(kept) == 10 + 100 * 2


def test_a_stream_has_a_limit() -> None:
    """A stream that never ends is not read for ever."""
    bound = EventBound(10, 100)
    with pytest.raises(TooLargeError):
        for _ in range(11):
            bound.take(b": nothing\n")
