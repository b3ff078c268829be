"""The state file: jobs that outlive the emulator."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from noukai_core.emulator import Emulator
from noukai_core.emulator._job_store import JobStore
from noukai_core.emulator._jobs import Job
from noukai_core.emulator._responses import entry
from noukai_core.emulator._script import Spec
from tests.emulator.driver import Clock

BODY = {"message": "hello ☃", "parameters": {"grade": 3}}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.jsonl"


def job(jobs: JobStore, clock: Clock, name: str, **spec: Any) -> Job:
    made = Job(
        name, "acme/spelling/grade-3", clock.now, Spec(**spec), dict(BODY), 2, "session-1", f"key-{name}"
    )
    jobs.add(made)
    return made


def views(jobs: JobStore, clock: Clock) -> list[dict[str, Any]]:
    return [
        {**entry(job, clock.now), "result": job.result(), "progress": job.progress(clock.now)} for job in jobs
    ]


def filled(jobs: JobStore, clock: Clock) -> None:
    """One job of each kind of history."""
    job(jobs, clock, "runs", outcome="never", progress=[{"step": 1}], steps=[{"stepId": "draft"}])
    job(jobs, clock, "ends-by-time", after_seconds=100, result={"a": [1]})
    polled = job(jobs, clock, "polled", after_polls=3)
    ended = job(jobs, clock, "ended-by-polls", after_polls=1, outcome="failed", error={"code": "X"})
    for each in (polled, ended, polled):
        clock.advance(1)
        jobs.poll(each)
    jobs.finish(job(jobs, clock, "cancelled"), "cancelled", {})
    jobs.finish(job(jobs, clock, "finished", outcome="never"), "completed", {"result": None})
    jobs.show_progress(job(jobs, clock, "shows", outcome="never"), {"step": 9})


def test_a_state_file_is_the_same_after_a_restart(file: Path, clock: Clock) -> None:
    """Every job with its submission, state, times, polls, progress and result, by id, session and key."""
    jobs = JobStore(file, clock)
    filled(jobs, clock)
    before = views(jobs, clock)
    jobs.close()
    again = JobStore(file, clock)
    assert views(again, clock) == before
    assert len(again.of_session("session-1")) == 7
    assert again.of_idempotency_key("key-shows") is again.find("shows")
    again.close()


def test_time_passes_while_the_emulator_is_down(file: Path, clock: Clock) -> None:
    """A job that was due in the meantime has ended after the restart, at the time that was due."""
    jobs = JobStore(file, clock)
    due = clock.now + 100
    job(jobs, clock, "slow", after_seconds=100)
    jobs.close()
    clock.advance(1000)
    again = JobStore(file, clock)
    found = again.find("slow")
    assert found is not None
    assert found.end is not None
    assert (found.end.state, found.end.at) == ("completed", due)
    again.close()


def test_a_state_file_grows_across_restarts(file: Path, clock: Clock) -> None:
    """What happens after a restart survives the next one."""
    for number in range(3):
        jobs = JobStore(file, clock)
        job(jobs, clock, f"job {number}", outcome="never")
        if number:
            before = jobs.find(f"job {number - 1}")
            assert before is not None
            jobs.finish(before, "failed", {})
        jobs.close()
    jobs = JobStore(file, clock)
    assert [found.state(clock.now) for found in jobs] == ["failed", "failed", "pending"]
    jobs.close()


def test_a_torn_state_file_loses_at_most_its_last_line(file: Path, clock: Clock) -> None:
    """Cut anywhere, as by a kill in the middle of writing, the file opens with everything before the cut."""
    jobs = JobStore(file, clock)
    filled(jobs, clock)
    jobs.close()
    whole = file.read_bytes()
    for cut in sorted(random.Random(7).sample(range(len(whole)), 60)):
        file.write_bytes(whole[:cut])
        torn = JobStore(file, clock)
        lines = [json.loads(line) for line in whole[:cut].rpartition(b"\n")[0].splitlines()]
        assert [each.id for each in torn] == [
            line["submitted"]["id"] for line in lines if "submitted" in line
        ]
        job(torn, clock, "new")
        torn.close()
        again = JobStore(file, clock)
        assert again.find("new") is not None
        again.close()


def test_a_state_file_is_emptied_by_a_reset(file: Path) -> None:
    """After a reset, no job comes back."""
    with Emulator(state_file=file) as emulator:
        emulator.control.reset()
    assert file.read_bytes() == b""


@pytest.mark.parametrize(
    "text", ["a diary\n", "[]\n", '{"submitted": {}}\n', '{"polled": "nobody", "at": 1}\n']
)
def test_a_file_that_is_not_a_state_file(file: Path, clock: Clock, text: str) -> None:
    """The error names the file, and the file is not changed."""
    file.write_text(text)
    with pytest.raises(ValueError, match=r"jobs\.jsonl is not a state file"):
        JobStore(file, clock)
    assert file.read_text() == text


def test_a_state_file_has_one_writer(file: Path, clock: Clock) -> None:
    """A second emulator cannot open the file until the first one has closed it."""
    jobs = JobStore(file, clock)
    with pytest.raises(ValueError, match="in use by another emulator"):
        JobStore(file, clock)
    jobs.close()
    JobStore(file, clock).close()


def test_a_state_file_is_free_again_when_the_emulator_cannot_listen(file: Path, emulator: Emulator) -> None:
    """An emulator that fails to start releases its state file."""
    port = int(emulator.base_url.split(":")[2].split("/")[0])
    with pytest.raises(OSError, match="in use"), Emulator(state_file=file, port=port):
        pass
    Emulator(state_file=file).close()
