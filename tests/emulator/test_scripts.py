"""How a script decides what becomes of a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from noukai_core.emulator import Emulator
from noukai_core.emulator._script import Script
from tests.emulator.driver import FLOW, Driver


@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled"])
async def test_an_outcome_after_a_time(noukai: Driver, outcome: str) -> None:
    """The job runs for its duration, and then has the outcome of the script."""
    await noukai.script(outcome=outcome, after_seconds=60)
    job_id = await noukai.submit()
    noukai.clock.advance(59.9)
    assert (await noukai.poll(job_id))["status"] == "running"
    noukai.clock.advance(0.1)
    assert (await noukai.poll(job_id))["status"] == outcome
    assert (await noukai.job(job_id))["outcome"] == outcome


@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled"])
async def test_an_outcome_after_a_number_of_polls(noukai: Driver, outcome: str) -> None:
    """The poll with that number sees the end, regardless of the clock."""
    await noukai.script(outcome=outcome, after_polls=3)
    job_id = await noukai.submit()
    noukai.clock.advance(3600)
    assert [(await noukai.poll(job_id))["status"] for _ in range(4)] == [
        "running",
        "running",
        outcome,
        outcome,
    ]


async def test_a_job_that_never_ends(noukai: Driver) -> None:
    """It runs until it is cancelled or finished by hand."""
    await noukai.script(outcome="never")
    job_id = await noukai.submit()
    noukai.clock.advance(1_000_000)
    assert (await noukai.poll(job_id))["status"] == "running"


@pytest.mark.parametrize("spec", [{"after_seconds": 0}, {"after_polls": 0}])
async def test_a_job_that_takes_no_time(noukai: Driver, spec: dict[str, Any]) -> None:
    """The job has ended at the first poll."""
    await noukai.script(**spec)
    assert (await noukai.poll(await noukai.submit()))["status"] == "completed"


async def test_a_poll_that_meets_a_fault_is_not_counted(noukai: Driver) -> None:
    """Only polls that get a response advance a job."""
    await noukai.script(after_polls=2)
    await noukai.fault("status", on="poll", status=503, times=5)
    job_id = await noukai.submit()
    for _ in range(5):
        assert (await noukai.get(f"{FLOW}/jobs/{job_id}")).status_code == 503
    assert [(await noukai.poll(job_id))["status"] for _ in range(2)] == ["running", "completed"]


@pytest.mark.parametrize("result", [{"words": ["receive"]}, [1, 2.5], "text", 7, False, None])
async def test_a_result_of_any_shape(noukai: Driver, result: Any) -> None:
    """The output is the script's result, `null` included."""
    await noukai.script(result=result, after_polls=1)
    assert (await noukai.poll(await noukai.submit()))["result"] == result


async def test_a_result_of_a_size(noukai: Driver) -> None:
    """The output has as many bytes as the script sets."""
    await noukai.script(result_bytes=100_000, after_polls=1)
    assert len((await noukai.poll(await noukai.submit()))["result"]) == 100_000


@pytest.mark.parametrize("error", ["no words left", {"code": "MODEL_DOWN", "message": "no words left"}])
async def test_an_error_of_either_shape(noukai: Driver, error: Any) -> None:
    """A failed job has the script's error, and no result."""
    await noukai.script(outcome="failed", error=error, after_polls=1)
    status = await noukai.poll(await noukai.submit())
    assert status["error"] == error
    assert "result" not in status


async def test_progress_is_spread_over_the_run(noukai: Driver) -> None:
    """Nothing while it is pending, then one object after the other, and the last one stays."""
    await noukai.script(progress=[{"step": 1}, {"step": 2}], after_seconds=10)
    job_id = await noukai.submit()
    seen = []
    for seconds in (0, 2, 4, 4):
        noukai.clock.advance(seconds)
        seen.append((await noukai.poll(job_id))["progress"])
    assert seen == [None, {"step": 1}, {"step": 2}, {"step": 2}]


async def test_progress_is_spread_over_the_polls(noukai: Driver) -> None:
    """A job that ends after a number of polls shows its progress by them."""
    await noukai.script(progress=[{"step": 1}, {"step": 2}], after_polls=4)
    job_id = await noukai.submit()
    assert [(await noukai.poll(job_id))["progress"]["step"] for _ in range(4)] == [1, 2, 2, 2]


async def test_progress_by_hand(noukai: Driver) -> None:
    """Progress that a test sets overrides the script."""
    await noukai.script(progress=[{"step": 1}], outcome="never")
    job_id = await noukai.submit()
    await noukai.control("POST", f"jobs/{job_id}/progress", {"step": 9})
    assert (await noukai.poll(job_id))["progress"] == {"step": 9}


async def test_a_job_is_finished_by_hand(noukai: Driver) -> None:
    """It ends at once, with the given result or error."""
    await noukai.script(outcome="never", result="scripted")
    first, second, third = [await noukai.submit() for _ in range(3)]
    await noukai.control("POST", f"jobs/{first}/finish", {"result": None})
    await noukai.control("POST", f"jobs/{second}/finish", {"outcome": "failed", "error": "by hand"})
    await noukai.control("POST", f"jobs/{third}/finish", {})
    assert (await noukai.poll(first))["result"] is None
    assert (await noukai.poll(second))["error"] == "by hand"
    assert (await noukai.poll(third))["result"] == "scripted"


async def test_the_more_exact_layer_wins(noukai: Driver) -> None:
    """Those of every flow, the slug, the path and the submission: each overrides the one before it."""
    await noukai.script("*", result="every", error="every", after_polls=1)
    other, slug, path = (f"seq/acme/spelling/{name}" for name in ("grade-1", "grade-2", "grade-3"))
    await noukai.script("grade-2", result="slug")
    await noukai.script("grade-3", result="slug")
    await noukai.script("acme/spelling/grade-3", result="path")
    own = {"_emulator": {"result": "own"}}
    assert [
        (await noukai.poll(await noukai.submit(flow, message="x", parameters=parameters), flow))["result"]
        for flow, parameters in ((other, {}), (slug, {}), (path, {}), (path, own))
    ] == ["every", "slug", "path", "own"]
    await noukai.script("grade-2", outcome="failed")
    assert (await noukai.poll(await noukai.submit(slug), slug))["error"] == "every"


async def test_a_later_layer_says_the_duration_in_its_own_way(noukai: Driver) -> None:
    """Seconds over polls, polls over seconds, a size over a result: the upper layer's alternative applies."""
    await noukai.script("*", after_polls=1, result="x")
    await noukai.script(after_seconds=5, result_bytes=3)
    job_id = await noukai.submit()
    assert (await noukai.poll(job_id))["status"] == "pending"
    noukai.clock.advance(5)
    assert (await noukai.poll(job_id))["result"] == "xxx"


async def test_the_jobs_own_specification_is_not_echoed(noukai: Driver) -> None:
    """The input comes back as the result without what was meant for the emulator."""
    own = {"after_polls": 1}
    job_id = await noukai.submit(message="hello", parameters={"grade": 3, "_emulator": own})
    assert (await noukai.poll(job_id))["result"] == {"message": "hello", "parameters": {"grade": 3}}


async def test_a_script_changes_only_later_jobs(noukai: Driver) -> None:
    """A job keeps the behaviour of the moment of its submission."""
    await noukai.script(outcome="failed", after_polls=1)
    job_id = await noukai.submit()
    await noukai.script(outcome="completed", after_polls=1)
    assert (await noukai.poll(job_id))["status"] == "failed"


async def test_a_slow_cancel(over_socket: Driver) -> None:
    """The cancel takes effect at once, and its response takes as long as the script sets."""
    await over_socket.script(outcome="never", cancel_seconds=0.3)
    job_id = await over_socket.submit()
    response = await over_socket.post(f"{FLOW}/jobs/{job_id}/cancel")
    assert response.status_code == 202
    assert response.elapsed.total_seconds() >= 0.3


BAD: list[tuple[Any, str]] = [
    ({"outcome": "lost"}, "completed, failed, cancelled, never"),
    ({"outcome": []}, "completed, failed, cancelled, never"),
    ({"after_seconds": -1}, "0 or more"),
    ({"after_seconds": True}, "0 or more"),
    ({"after_seconds": 10**400}, "a billion at most"),
    ({"result_bytes": 10**13}, "to a billion"),
    ({"after_polls": 1.5}, "whole number"),
    ({"progress": [1]}, "list of objects"),
    ({"error": 7}, "text or an object"),
    ({"colour": "red"}, "'colour'"),
    ({"after_seconds": 1, "after_polls": 1}, "only one of them"),
    ("fast", "must be an object"),
]


@pytest.mark.parametrize(("spec", "words"), BAD, ids=lambda value: repr(value)[:30])
def test_a_script_that_makes_no_sense(spec: Any, words: str) -> None:
    """The message names the flow, the value and what is allowed."""
    with pytest.raises(ValueError, match=words) as caught:
        Script({"grade-3": spec})
    assert "grade-3" in str(caught.value)


async def test_a_script_by_control_that_makes_no_sense(noukai: Driver) -> None:
    """400 with the same words."""
    response = await noukai.command("POST", "script", {"flow": "grade-3", "outcome": "lost"})
    assert response.status_code == 400
    assert "outcome='lost'" in response.json()["error"]


@pytest.mark.parametrize(
    "body",
    [b'{"flow": "a", "result": 1e999}', b'{"flow": "a", "result": "\\ud800"}', b"[" * 100_000, b"{", b"\xff"],
    ids=lambda body: repr(body)[:40],
)
async def test_a_script_that_no_response_could_show(noukai: Driver, body: bytes) -> None:
    """Values that no response could contain later are rejected at once."""
    url = noukai.client.base_url.copy_with(raw_path=b"/_emulator/script")
    assert (await noukai.post(str(url), content=body)).status_code == 400


def test_a_script_is_read_from_a_file(tmp_path: Path) -> None:
    """A JSON file of specifications by flow is the same as the mapping."""
    flows = {"*": {"after_seconds": 5}, "grade-3": {"outcome": "failed"}}
    file = tmp_path / "script.json"
    file.write_text(json.dumps(flows))
    expected = {"after_seconds": 5, "outcome": "failed"}
    assert Script.read(file).merged("acme/spelling/grade-3", {}) == expected
    assert Script.read(flows).merged("acme/spelling/grade-3", {}) == expected


@pytest.mark.parametrize("text", ["", "[]", "{", '{"grade-3": 1}', "\udcff"])
def test_a_file_that_is_no_script(tmp_path: Path, text: str) -> None:
    """The error is raised before the emulator listens."""
    file = tmp_path / "script.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"script"):
        Emulator(file)
