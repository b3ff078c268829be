"""A request and its answer as they travel, whatever carries them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from noukai_core import AsyncNoukai, NoukaiError
from noukai_core.exchange import Incoming, Outgoing
from tests.core.wire import FLOW


def incoming(*headers: tuple[bytes, bytes]) -> Incoming:
    return Incoming(200, headers, 1000)


def test_headers_that_come_twice_are_joined() -> None:
    """As HTTP has it: none of two values is believed alone."""
    answer = incoming((b"Retry-After", b"5"), (b"retry-after", b"60")).answer()
    assert answer.headers == {"retry-after": "5, 60"}


@pytest.mark.parametrize("raw", ["café".encode(), "café".encode("latin-1")])
def test_a_request_id_in_either_encoding(raw: bytes) -> None:
    """What a server calls a request can be quoted back to it."""
    assert incoming((b"X-Request-Id", raw)).answer().request_id == "café"


def test_a_request_does_not_show_what_is_submitted() -> None:
    """A traceback with local variables shows no inputs of a job."""
    assert "secret" not in repr(Outgoing("POST", "https://noukai.test", {}, b"secret", 1.0))


@pytest.mark.parametrize(
    "base_url, host",
    [("https://straße.test/api", "xn--strae-oqa.test"), ("https://bücher.test", "xn--bcher-kva.test")],
)
async def test_a_name_beyond_ascii_is_looked_up_as_httpx_does(
    key: str, monkeypatch: pytest.MonkeyPatch, base_url: str, host: str
) -> None:
    """The async client sends its key to the same server as the blocking one."""
    asked: list[str] = []

    async def look_up(name: str, *_: Any, **__: Any) -> Any:
        asked.append(name)
        raise OSError("nobody of that name")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    async with AsyncNoukai(key, base_url=base_url, fault_patience=0) as client:
        with pytest.raises(NoukaiError):
            await client.flow(FLOW).job("hello")
    assert set(asked) == {host}
