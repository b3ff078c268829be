"""Submissions that the server rejects: temporarily, or permanently."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from noukai_core import (
    APIError,
    AuthenticationError,
    BadRequestError,
    FlowNotFoundError,
    InsufficientCreditsError,
    ModelKeyRejectedError,
    PermissionDeniedError,
    RateLimitError,
    TransientError,
)
from noukai_core._engine import schedule
from tests.core.scripted_server import FLOW, HttpResponse, ScriptedServer, accepted, rejection

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.core.conftest import MakeClient

SURELY_NOT_PROCESSED: dict[str, HttpResponse | Exception] = {
    "refused": httpx.ConnectError("[Errno 111] Connection refused"),
    "never connected": httpx.ConnectTimeout("no route"),
    "429": rejection(429, "RATE_LIMITED", Retry_After="1"),
}


@pytest.mark.parametrize("kind", SURELY_NOT_PROCESSED)
def test_what_was_surely_not_processed_is_sent_again(
    scripted: MakeClient, server: ScriptedServer, kind: str
) -> None:
    """A refused connection or a 429 is retried, and no session is asked."""
    server.on("submit", SURELY_NOT_PROCESSED[kind], accepted("job-8"))
    assert scripted().flow(FLOW).job(message="hello").id == "job-8"
    assert (len(server.made("submit")), len(server.made("session")), len(server.identities)) == (2, 0, 1)


@pytest.mark.parametrize("form", [1, "http-date"])
def test_retry_after_is_honoured(
    local: MakeClient, emulator: Emulator, form: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submission waits as long as the server requests, in either form, before it is sent again."""
    monkeypatch.setattr(schedule, "SHORTEST_PAUSE", 0.005)
    emulator.control.fault("status", on="submit", status=429, retry_after=form, seconds=1, times=1)
    local().flow(FLOW).job(message="hello")
    refused, taken = emulator.control.requests("submit")
    assert refused["status"] == 429
    assert taken["time"] - refused["time"] >= 0.95
    assert len(emulator.control.jobs()) == 1


@pytest.mark.parametrize("form", ["seconds", "http-date"])
def test_retry_after_beyond_the_retry_window_ends_at_once(
    scripted: MakeClient, server: ScriptedServer, form: str
) -> None:
    """If the server requests an hour, the client raises an error instead of blocking a worker for an hour."""
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    server.on(
        "submit",
        rejection(429, "RATE_LIMITED", "too many", Retry_After="3600" if form == "seconds" else later),
    )
    with pytest.raises(RateLimitError) as caught:
        scripted().flow(FLOW).job(message="hello")
    assert 3500 < caught.value.retry_after <= 3600
    assert (caught.value.status_code, caught.value.code, caught.value.request_id) == (
        429,
        "RATE_LIMITED",
        "req-42",
    )


@pytest.mark.parametrize(
    "header",
    [
        "soon",
        "",
        "-5",
        "\x1c0",
        "Mon, 99 Foo 2026",
        "1e9",
        "٣",
        "Mon, 01 Jan 2024 00:00:00 +99999999999999999",
    ],
    ids=ascii,
)
def test_a_retry_after_that_makes_no_sense_is_passed_over(
    scripted: MakeClient, server: ScriptedServer, header: str
) -> None:
    """An unreadable Retry-After on a 429 neither breaks the submission nor stops it."""
    raw = [(b"Retry-After", header.encode())]
    server.on("submit", lambda request: httpx.Response(429, headers=raw), accepted("job-8"))
    assert scripted().flow(FLOW).job(message="hello").id == "job-8"


def test_a_server_that_never_takes_it_is_an_error_after_the_retry_window(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """A connection refused for longer than the retry window raises a transient error: no job can exist."""
    server.on("submit", SURELY_NOT_PROCESSED["refused"])
    with pytest.raises(TransientError) as caught:
        scripted(retry_timeout=0.5).flow(FLOW).job(message="hello")
    assert caught.value.status_code is None
    assert server.made("session") == []
    assert len(server.made("submit")) >= 2


PERMANENT_ERRORS: list[Any] = [
    (400, "MISSING_MESSAGE", BadRequestError),
    (413, "MESSAGES_TOO_LARGE", BadRequestError),
    (422, "", BadRequestError),
    (401, "", AuthenticationError),
    (402, "INSUFFICIENT_CREDITS", InsufficientCreditsError),
    (403, "", PermissionDeniedError),
    (404, "FLOW_NOT_FOUND", FlowNotFoundError),
    (404, "NO_SUCH_VERSION", FlowNotFoundError),
    (500, "BYOK_KEY_REJECTED", ModelKeyRejectedError),
    (502, "byok_key_rejected", ModelKeyRejectedError),
    (503, "BYOK_KEY_REJECTED", ModelKeyRejectedError),
]


@pytest.mark.parametrize(
    ("status", "code", "kind"), PERMANENT_ERRORS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_permanent_error_ends_at_once(
    scripted: MakeClient, server: ScriptedServer, status: int, code: str, kind: type[APIError]
) -> None:
    """A permanent error is raised after one request, with status, code, words and request id."""
    server.on("submit", rejection(status, code, "the very words"))
    with pytest.raises(kind) as caught:
        scripted().flow(FLOW).job(message="hello")
    error = caught.value
    assert (error.status_code, error.code or "", error.request_id) == (status, code.upper(), "req-42")
    assert error.retryable is False
    assert all(part in str(error) for part in ("the very words", "req-42", str(status), FLOW))
    assert len(server.requests) == 1
