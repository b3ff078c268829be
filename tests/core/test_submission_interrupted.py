"""A call that is interrupted in the middle of its submission names what may be left running."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import httpx
import pytest

from noukai_core import AsyncNoukai, Submission
from noukai_core._engine.effects import Sleep
from tests.core.scripted_server import FLOW, ScriptedServer, rejection, session

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient

INTERRUPTIONS = {"sync": KeyboardInterrupt, "async": asyncio.CancelledError}


@pytest.fixture
def interrupted(driver: str) -> Any:
    """A response during which the call is interrupted."""

    def interrupt(request: httpx.Request) -> NoReturn:
        raise INTERRUPTIONS[driver]

    return interrupt


def interrupt(flow: Any, driver: str, **options: Any) -> None:
    """Submit a job, and expect the interruption."""
    with pytest.raises(INTERRUPTIONS[driver]):
        flow.job("x", **options)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "left running" in record.getMessage()]


@pytest.mark.parametrize("during", ["the request", "the lookup"])
def test_what_may_be_left_running_is_named(
    scripted: MakeClient,
    server: ScriptedServer,
    interrupted: Any,
    driver: str,
    caplog: pytest.LogCaptureFixture,
    during: str,
) -> None:
    """One line names the submission, which is nowhere else, and with it the job is found."""
    if during == "the request":
        server.on("submit", interrupted)
    else:
        server.on("submit", rejection(502)).on("session", interrupted)
    flow = scripted().flow(FLOW)
    interrupt(flow, driver)
    (identity,) = server.identities
    assert lines(caplog) == [
        f"Noukai submission {identity} to {FLOW}: may be left running (interrupted before the response; "
        "find() with this submission finds its job)"
    ]
    server.on("session", session("job-7"))
    assert flow.find(Submission(identity)).id == "job-7"
    assert flow.job("x", submission=Submission(identity)).id == "job-7"
    assert len(server.made("submit")) == 1


def test_a_session_of_the_users_own_finds_nothing(
    scripted: MakeClient,
    server: ScriptedServer,
    interrupted: Any,
    driver: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In a session of the user's own, the line promises no way to find the job."""
    server.on("submit", interrupted)
    own = Submission.new().id
    interrupt(scripted().flow(FLOW), driver, session_id=own)
    (identity,) = server.identities - {own}
    assert lines(caplog) == [
        f"Noukai submission {identity} to {FLOW}: may be left running (interrupted before the response)"
    ]


def test_a_submission_of_the_callers_own_is_the_callers_to_name(
    scripted: MakeClient,
    server: ScriptedServer,
    interrupted: Any,
    driver: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A caller that keeps the submission knows it, and says itself what becomes of the job."""
    server.on("submit", interrupted)
    interrupt(scripted().flow(FLOW), driver, submission=Submission.new())
    assert lines(caplog) == []


def test_a_submission_that_was_surely_not_processed_is_not_named(
    scripted: MakeClient,
    server: ScriptedServer,
    driver: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interruption while a rejected request waits to be sent again leaves nothing running."""

    async def asleep(effect: Sleep) -> NoReturn:
        raise INTERRUPTIONS[driver]

    def sleep(seconds: float) -> NoReturn:
        raise INTERRUPTIONS[driver]

    # Not those of the modules `time` and `asyncio`, which an emulator in this process needs.
    monkeypatch.setattr("noukai_core.client.time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr("noukai_core.async_client.sleep", asleep)
    server.on("submit", rejection(429))
    interrupt(scripted().flow(FLOW), driver)
    assert lines(caplog) == []


class Silent(httpx.AsyncBaseTransport):
    """Receives requests, and never responds."""

    def __init__(self) -> None:
        self.received = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> NoReturn:
        self.received.set()
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_submission_that_waits_for_its_turn_is_not_named(
    key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of many calls that are cancelled, only those are named whose requests had gone out."""
    silent = Silent()
    async with AsyncNoukai(key, max_concurrent_submissions=1, transport=silent) as client:
        calls = [asyncio.create_task(client.flow(FLOW).job("x")) for _ in range(20)]
        await silent.received.wait()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert len(lines(caplog)) == 1


async def test_a_batch_names_what_it_leaves_in_one_line(key: str, caplog: pytest.LogCaptureFixture) -> None:
    """The submissions of a batch that is closed are named by their sessions, and not one by one."""
    silent = Silent()
    async with AsyncNoukai(key, transport=silent) as client, client.flow(FLOW).jobs(["x"] * 50) as batch:
        first = asyncio.create_task(anext(batch))
        await silent.received.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    (line,) = lines(caplog)
    assert line.startswith(f"Noukai batch of {FLOW}: left running (")
