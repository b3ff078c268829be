"""The live trace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest

from noukai_core import Noukai
from noukai_core.emulator import Emulator
from tests.emulator.driver import FLOW, Driver

STEPS = [{"stepId": "draft", "outputContext": {"text": "x"}}, {"stepId": "check"}]


def parsed(text: str) -> list[dict[str, Any]]:
    events = []
    for frame in text.split("\n\n")[:-1]:
        name, data = frame.split("\n")
        payload = json.loads(data.removeprefix("data: "))
        assert name == f"event: {payload['eventType']}"
        events.append(payload)
    return events


async def test_a_finished_run_is_replayed(noukai: Driver) -> None:
    """All events of the run, in order, and then the stream ends."""
    await noukai.script(steps=STEPS, result="done")
    job_id = await noukai.submit()
    noukai.clock.advance(1)
    response = await noukai.get(f"{FLOW}/runs/{job_id}/trace/stream")
    assert response.headers["Content-Type"].startswith("text/event-stream")
    events = parsed(response.text)
    assert [(event["eventType"], event.get("stepId")) for event in events] == [
        ("run_started", None),
        ("step_started", "draft"),
        ("step_output", "draft"),
        ("step_completed", "draft"),
        ("step_started", "check"),
        ("step_output", "check"),
        ("step_completed", "check"),
        ("flow_completed", None),
    ]
    assert {event["executionId"] for event in events} == {job_id}
    assert events[2]["outputData"] == {"text": "x"}
    assert events[-1]["result"] == "done"


@pytest.mark.parametrize(("outcome", "last"), [("failed", "step_error"), ("cancelled", "step_started")])
async def test_there_is_no_event_of_another_end(noukai: Driver, outcome: str, last: str) -> None:
    """The stream of a run that fails or is cancelled just ends."""
    await noukai.script(steps=STEPS, outcome=outcome)
    job_id = await noukai.submit()
    noukai.clock.advance(1)
    events = parsed((await noukai.get(f"{FLOW}/runs/{job_id}/trace/stream")).text)
    assert events[-1]["eventType"] == last
    assert "flow_completed" not in {event["eventType"] for event in events}


async def test_a_run_is_followed_to_its_end(noukai: Driver) -> None:
    """A stream that is opened early ends when the run does, and has sent every event once."""
    await noukai.script(outcome="never", steps=STEPS, after_seconds=10)
    job_id = await noukai.submit()
    stream = asyncio.create_task(noukai.get(f"{FLOW}/runs/{job_id}/trace/stream"))
    await noukai.control("GET", "wait", kind="stream")
    noukai.clock.advance(5)
    assert not stream.done()
    await noukai.control("POST", f"jobs/{job_id}/finish", {})
    kinds = [event["eventType"] for event in parsed((await stream).text)]
    assert kinds.count("run_started") == kinds.count("flow_completed") == 1
    assert kinds.count("step_completed") == 2


async def test_events_come_as_they_happen(over_socket: Driver) -> None:
    """The first event arrives during the run."""
    await over_socket.script(outcome="never", after_seconds=10)
    job_id = await over_socket.submit()
    over_socket.clock.advance(2)
    async with over_socket.client.stream("GET", f"{FLOW}/runs/{job_id}/trace/stream") as response:
        chunks = response.aiter_text()
        assert "run_started" in await anext(chunks)
        await over_socket.control("POST", f"jobs/{job_id}/finish", {})
        assert "flow_completed" in "".join([chunk async for chunk in chunks])


async def test_a_run_that_ends_while_its_events_are_sent() -> None:
    """A reader that takes its time gets the events of the end as well."""
    with (
        Emulator({"*": {"outcome": "never"}}) as emulator,
        Noukai("nk_test_x", base_url=emulator.base_url) as client,
    ):
        job = client.flow("acme/spelling/grade-3").job("hello")
        sent: list[bytes] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            if not any(sent) and message.get("body"):
                await asyncio.to_thread(emulator.control.finish, job.id)
            sent.append(message.get("body", b""))

        scope = {
            "type": "http",
            "method": "GET",
            "path": f"/api/v1/{FLOW}/runs/{job.id}/trace/stream",
            "query_string": b"",
            "headers": [(b"authorization", b"Bearer nk_test_x")],
        }
        await emulator.app(scope, asyncio.Event().wait, send)
    assert b"flow_completed" in sent[-2]


def test_a_server_that_stops_ends_its_streams(caplog: pytest.LogCaptureFixture) -> None:
    """An open stream ends with the server, which does not have to break it off."""
    script = {"*": {"outcome": "never", "after_seconds": 10_000}}
    with Emulator(script) as emulator, httpx.Client(base_url=emulator.base_url) as client:
        client.headers["Authorization"] = "Bearer nk_test_x"
        job_id = client.post(f"{FLOW}/jobs", json={"message": "hello"}).json()["executionId"]
        with client.stream("GET", f"{FLOW}/runs/{job_id}/trace/stream") as stream:
            emulator.close()
            assert stream.read() == b""
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
