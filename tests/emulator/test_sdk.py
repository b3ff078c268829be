"""The published `noukai-sdk`, an independent client, unmodified except for its base URL."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import noukai_sdk
import pytest
from noukai_sdk import _client
from noukai_sdk._errors import AuthenticationError, FlowNotFoundError, RateLimitError

from noukai_core.emulator import Emulator

KEY = "nk_test_12345678_" + "x" * 32
FLOW = "acme/spelling/grade-3"


@pytest.fixture(autouse=True)
def local(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK has no base URL argument, so its constant is set."""
    monkeypatch.setattr(_client, "DEFAULT_BASE_URL", emulator.base_url)


def test_it_submits_polls_and_waits(emulator: Emulator) -> None:
    """The job is accepted, polled, and waited for to its end."""
    emulator.control.script("grade-3", after_polls=3, result={"words": ["receive"]})
    with noukai_sdk.Noukai(KEY) as client:
        job = client.flow(FLOW).execute_async(message="recieve", parameters={"grade": 3})
        assert job.flow_id
        assert job.poll().status == "running"
        status = job.wait(timeout=20, poll_interval=0.01)
    assert (status.status, status.result, status.error) == ("completed", {"words": ["receive"]}, None)
    assert emulator.control.counts(job.execution_id)["poll"] == 3
    (made,) = emulator.control.jobs()
    assert (made["id"], made["message"], made["parameters"]) == (job.execution_id, "recieve", {"grade": 3})


async def test_it_submits_polls_and_waits_asynchronously(emulator: Emulator) -> None:
    """The same with the SDK's asynchronous client."""
    emulator.control.script("grade-3", after_polls=2, outcome="failed", error="no words left")
    async with noukai_sdk.AsyncNoukai(KEY) as client:
        job = await client.flow(FLOW).execute_async(message="recieve")
        assert (await job.poll()).status == "running"
        status = await job.wait(timeout=20, poll_interval=0.01)
    assert (status.status, status.error) == ("failed", "no words left")


@pytest.mark.parametrize(("version", "shown"), [("production", "production"), ("draft", "draft"), (7, 7)])
def test_it_chooses_a_version(emulator: Emulator, version: Any, shown: Any) -> None:
    """The version that the SDK puts into the path is the one that the emulator reads there."""
    with noukai_sdk.Noukai(KEY) as client:
        client.flow(FLOW).execute_async(message="hello", version=version)
    assert emulator.control.jobs()[0]["version"] == shown


def test_it_waits_out_the_404_race(emulator: Emulator) -> None:
    """A job that no worker has written down yet is pending to the SDK."""
    emulator.control.script("grade-3", after_polls=1)
    emulator.control.fault("not_found", on="poll", times=3)
    with noukai_sdk.Noukai(KEY) as client:
        job = client.flow(FLOW).execute_async(message="hello")
        assert job.poll().status == "pending"
        assert job.wait(timeout=20, poll_interval=0.05).status == "completed"


def test_its_sessions_are_kept(emulator: Emulator) -> None:
    """The session that the SDK sends can be requested."""
    session_id = str(uuid4())
    with noukai_sdk.Noukai(KEY, session_id=session_id) as client:
        job = client.flow(FLOW).execute_async(message="hello")
    (made,) = emulator.control.jobs()
    assert (made["id"], made["session_id"]) == (job.execution_id, session_id)


def test_it_reads_the_trace(emulator: Emulator) -> None:
    """Steps, tokens and cost arrive in the SDK's models."""
    tokens = {"prompt": 5, "completion": 7, "total": 12}
    emulator.control.script(
        "grade-3", after_polls=1, steps=[{"stepId": "draft", "tokens": tokens, "costUsd": "0.25"}]
    )
    with noukai_sdk.Noukai(KEY) as client:
        flow = client.flow(FLOW)
        job = flow.execute_async(message="hello")
        job.wait(timeout=20, poll_interval=0.01)
        trace = flow.run(job.execution_id).trace()
    assert (trace.flow_run.id, trace.flow_run.status) == (job.execution_id, "completed")
    (step,) = trace.steps
    assert (step.step_id, step.tokens and step.tokens.total, step.cost_usd) == ("draft", 12, "0.25")


def test_it_follows_the_live_trace(emulator: Emulator) -> None:
    """Every event is one that the SDK understands."""
    emulator.control.script("grade-3", after_seconds=0.3, steps=[{"stepId": "draft"}], result="done")
    with noukai_sdk.Noukai(KEY) as client:
        flow = client.flow(FLOW)
        job = flow.execute_async(message="hello")
        events = list(flow.run(job.execution_id).live_trace())
    assert [event.event_type for event in events] == [
        "run_started",
        "step_started",
        "step_output",
        "step_completed",
        "flow_completed",
    ]
    assert events[-1].result == "done"


def test_its_errors_are_its_own(emulator: Emulator) -> None:
    """Rejections arrive as the SDK's errors for them, with code and request id."""
    with noukai_sdk.Noukai(KEY) as client:
        flow = client.flow(FLOW)
        emulator.control.fault("expired_key")
        with pytest.raises(AuthenticationError) as expired:
            flow.execute_async(message="hello")
        assert expired.value.request_id
        assert "invalid_token" in (expired.value.www_authenticate or "")
        emulator.control.fault("status", status=429, retry_after=7, times=None, on="submit")
        with pytest.raises(RateLimitError) as limited:
            flow.execute_async(message="hello")
        assert limited.value.retry_after == 7
        emulator.control.clear_faults()
        emulator.control.script("grade-3", missing=True)
        with pytest.raises(FlowNotFoundError) as missing:
            flow.execute_async(message="hello")
        assert missing.value.code == "FLOW_NOT_FOUND"
