"""Any bytes on a real connection: what is no HTTP, and what never ends, holds neither time nor memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from noukai_core import NoukaiError
from noukai_core._engine import schedule
from tests.core.scripted_server import FLOW
from tests.fuzz.drivers import DRIVERS, client_of
from tests.fuzz.nonsense import KEY, MARK, fuzzed
from tests.fuzz.raw_server import ENDLESS, RawServer, ServerAction

MEGABYTE = 1024 * 1024
SHORT_RETRY: dict[str, Any] = {"timeout": 0.3, "retry_timeout": 0.5, "max_response_bytes": MEGABYTE}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", ENDLESS)
def test_an_response_without_end(name: str, driver: str) -> None:
    """It ends within a request's time and the size limit; the wait ends in one of our errors."""
    with (
        RawServer(ENDLESS[name]) as server,
        client_of(driver, **SHORT_RETRY, api_key=KEY, base_url=server.base_url) as client,
    ):
        tracemalloc.start()
        try:
            with pytest.raises(NoukaiError):
                client.flow(FLOW).attach("job-1").wait(timeout_ms=5_000)
            assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
        finally:
            tracemalloc.stop()


_LINES = st.sampled_from(
    [
        *(
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 204 No\r\n",
            b"HTTP/1.1 101 Go\r\n",
            b"HTTP/1.0 200\r\n",
            b"HTTP/2 200\r\n",
        ),
        *(
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 503 No\r\n",
            b"\r\n",
            b"\n",
            b" ",
            b"0\r\n\r\n",
            b"2\r\n{}\r\n",
        ),
        *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Upgrade: h2c\r\n"),
        *(
            b"Content-Length: 20\r\n",
            b"Content-Length: 2, 2\r\n",
            b"Content-Length: -1\r\n",
            b"Content-Encoding: gzip\r\n",
        ),
        *(
            b"Connection: close\r\n",
            b"X-A: \xff\r\n",
            b": \r\n",
            b"X\x00: 1\r\n",
            b"Retry-After: \xb2\r\n",
            KEY.encode() + b"\r\n",
        ),
        *(
            b'{"status":"running"}',
            b'{"status":"completed"}',
            b"\x1f\x8b\x08\x00",
            b"FFFFFFFFFFFFFFFFFFFF\r\n",
        ),
    ]
)


@pytest.mark.parametrize("driver", DRIVERS)
def test_any_bytes(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever bytes arrive, a poll ends in a status or in one of our errors, which does not show the key."""
    monkeypatch.setattr(schedule, "SHORT_RETRY_WINDOW", 0.0)
    with (
        RawServer(lambda _: ()) as server,
        client_of(driver, **SHORT_RETRY | {"timeout": 0.05}, api_key=KEY, base_url=server.base_url) as client,
    ):

        @fuzzed()
        @given(st.lists(_LINES | st.binary(max_size=30), max_size=12), st.booleans())
        @example([KEY.encode() + b"\r\n"], True)
        def check(chunks: list[bytes], resets: bool) -> None:
            server.response = lambda _: [b"".join(chunks), *[ServerAction.RESET] * resets]
            try:
                client.flow(FLOW).attach("job-1").status()
            except NoukaiError as error:
                assert MARK not in str(error)

        check()
