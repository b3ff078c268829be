"""The trigger and a server with malformed responses: there is one event, and it is well-formed."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given

from noukai_airflow._connection import ConnectionSettings
from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.triggers.noukai import NoukaiJobTrigger
from tests.fuzz.nonsense import KEY, MARK, Given, fuzzed, scripts
from tests.fuzz.server import Server
from tests.fuzz.virtual_clock import turned_time

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

FLOW = "acme/demo/flow"
WAIT = 600.0
RESULT = "MARKED8fuzz0result"
COMPLETED = Given(200, (), (json.dumps({"status": "completed", "result": RESULT, "error": KEY}).encode(),))


def events_of(
    transport: httpx.AsyncBaseTransport, loop: Callable[[], asyncio.AbstractEventLoop]
) -> list[Any]:
    """Run a trigger to its end, and return its events."""

    async def run() -> list[Any]:
        waiting = NoukaiJobTrigger("job-1", FLOW, deadline=time.time() + WAIT)
        return [event.payload async for event in waiting.run()]

    settings = ConnectionSettings.of(
        "noukai_default", password=KEY, host="https://noukai.test/api/v1", extra={}
    )

    async def read_connection(hook: NoukaiHook) -> ConnectionSettings:
        return settings

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=loop) as runner:
        patch.setattr(NoukaiHook, "_read_connection", read_connection)
        patch.setattr(
            ConnectionSettings,
            "client_arguments",
            lambda self: {"api_key": self.api_key, "base_url": self.base_url, "transport": transport},
        )
        return runner.run(run())


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@fuzzed()
@given(scripts("poll"))
@example([COMPLETED])
def test_any_response(script: list[Given]) -> None:
    """Any response leads to one event by the deadline: a job and a reason, without a key or a result."""
    server = Server(2.5 * WAIT, poll=script)
    with turned_time() as clock:
        began = clock.now
        (payload,) = events_of(server.transport, clock.loop)
        assert clock.now - began <= WAIT + 1
    event = JobEvent.read(payload)
    assert event is not None
    assert (event.job_id, event.reason is Reason.UNEXPECTED_ERROR) == ("job-1", False)
    assert len(event.state or "") <= 100
    reported = json.dumps(payload)
    assert MARK not in reported
    assert RESULT not in reported
