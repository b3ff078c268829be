"""Steps in the log beside a wait: over real HTTP, whatever becomes of the stream."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from devtools.processes import LONGEST_WAIT
from noukai_core import AsyncNoukai, following
from noukai_core._http import connection
from noukai_core.following import StepCount, log_steps
from tests.core.scripted_server import FLOW

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.core.conftest import MakeClient

STEPS = [{"stepId": "draft", "modelUsed": "gpt-5"}, {"stepId": "check"}]
SHOWN = ["draft started", "draft completed", "check started", "check completed"]
FAULTS: dict[str, dict[str, Any]] = {
    "none": {"kind": "stream", "then": "huge", "after": 1_000, "times": 0},
    "ends": {"kind": "stream", "then": "end", "after": 2},
    "stalls": {"kind": "stream", "then": "stall", "after": 2},
    "repeats": {"kind": "stream", "then": "repeat", "times": None},
    "huge": {"kind": "stream", "then": "huge", "after": 2},
    "unavailable": {"kind": "status", "on": "stream", "status": 503, "times": 2},
    "dropped": {"kind": "drop_after", "on": "stream"},
}
REFUSALS: dict[str, dict[str, Any]] = {
    "401": {"kind": "expired_key", "on": "stream"},
    "403": {"kind": "status", "on": "stream", "status": 403, "code": "FORBIDDEN"},
    "404": {"kind": "not_found", "on": "stream"},
    "a page": {"kind": "nonsense", "on": "stream", "content_type": "text/html"},
}

log = logging.getLogger("tests.following")


def words(lines: list[str]) -> list[str]:
    """What happened to which step, without what it used."""
    return [" ".join(line.rpartition("step ")[2].split()[:2]) for line in lines]


@pytest.mark.parametrize("fault", FAULTS)
def test_steps_are_followed_through_faults(
    local: MakeClient, emulator: Emulator, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is shown once over real HTTP, through each fault of a stream."""
    if fault == "stalls":
        monkeypatch.setattr(connection, "SILENCE_SECONDS", 3.0)
    emulator.control.script(FLOW, steps=STEPS, after_seconds=0.2)
    emulator.control.fault(**FAULTS[fault])
    job = local().flow(FLOW).job("x")
    assert words([step.text for step in job.steps()]) == SHOWN
    assert job.wait(timeout_ms=60_000).output


async def waited(emulator: Emulator, key: str, **options: Any) -> str:
    """Run a job whose steps are logged beside the wait, and return its last state."""
    async with AsyncNoukai(key, base_url=emulator.base_url, poll_interval=0.05, **options) as client:
        job = await client.flow(FLOW).job("x")
        async with log_steps(job, log, StepCount()):
            async for status in job.watch(timeout=60):
                last = status
        return str(last.state)


@pytest.mark.parametrize("fault", [*FAULTS, *REFUSALS])
@pytest.mark.parametrize("outcome", ["completed", "failed"])
async def test_the_outcome_is_the_polls(
    emulator: Emulator,
    key: str,
    fault: str,
    outcome: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever becomes of the stream, the wait ends as it would without, and no step is logged twice."""
    caplog.set_level(logging.INFO, log.name)
    if fault in REFUSALS:
        monkeypatch.setattr(following, "LAST_STEPS_SECONDS", LONGEST_WAIT)
    emulator.control.script(FLOW, steps=STEPS, after_seconds=0.2, outcome=outcome)
    emulator.control.fault(**(FAULTS | REFUSALS)[fault])
    assert await waited(emulator, key, not_found_grace=0) == outcome
    lines = [record.getMessage() for record in caplog.records if record.name == log.name]
    if fault in REFUSALS:
        (line,) = lines
        assert "steps not followed (Following job" in line
    else:
        assert len(set(lines)) == len(lines)
        assert "steps not followed" not in caplog.text


async def test_one_line_says_that_too_many_jobs_are_followed(
    emulator: Emulator, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of ten jobs, as many are followed as the process may; the others say once why they are not."""
    caplog.set_level(logging.INFO, log.name)
    emulator.control.script(FLOW, steps=STEPS, after_seconds=1)
    ended = await asyncio.gather(*(waited(emulator, key, max_followed_jobs=4) for _ in range(10)))
    assert ended == 10 * ["completed"]
    lines = [record.getMessage() for record in caplog.records if record.name == log.name]
    refused = [line for line in lines if "steps not followed" in line]
    assert len(refused) == 6
    assert all("follows 4 jobs already" in line for line in refused)
    assert emulator.control.counts()["stream"] == 4


async def test_a_wait_that_is_cancelled_leaves_no_stream(emulator: Emulator, key: str) -> None:
    """When a wait is cancelled, its stream is closed with it."""
    emulator.control.script(FLOW, steps=STEPS, after_seconds=60)
    waiting = asyncio.create_task(waited(emulator, key, max_followed_jobs=1))
    await asyncio.to_thread(emulator.control.wait_for, "stream")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with AsyncNoukai(key, base_url=emulator.base_url, max_followed_jobs=1) as client:
        job = await client.flow(FLOW).job("x")
        steps = job.steps()
        assert (await anext(steps)).text == "draft started"
        await steps.aclose()
