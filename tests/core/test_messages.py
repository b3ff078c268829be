"""A request and its answer as they travel, whatever carries them."""

from __future__ import annotations

import pytest

from noukai_core._http.messages import HttpRequest, ResponseReader


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
