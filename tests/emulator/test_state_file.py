"""The book: the jobs that outlive the emulator."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from noukai_core.emulator import Emulator
from noukai_core.emulator._jobs import Job
from noukai_core.emulator._responses import entry
from noukai_core.emulator._script import Spec
from noukai_core.emulator._state_file import StateFile
from tests.emulator.driver import Clock

BODY = {"message": "hello ☃", "parameters": {"grade": 3}}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.book"


def job(state_file: StateFile, clock: Clock, name: str, **spec: Any) -> Job:
    made = Job(
        name, "acme/spelling/grade-3", clock.now, Spec(**spec), dict(BODY), 2, "session-1", f"key-{name}"
    )
    state_file.add(made)
    return made


def views(state_file: StateFile, clock: Clock) -> list[dict[str, Any]]:
    return [
        {**entry(job, clock.now), "result": job.result(), "progress": job.progress(clock.now)}
        for job in state_file
    ]


def filled(state_file: StateFile, clock: Clock) -> None:
    """One job of each kind of history."""
    job(state_file, clock, "runs", outcome="never", progress=[{"step": 1}], steps=[{"stepId": "draft"}])
    job(state_file, clock, "ends-by-time", after_seconds=100, result={"a": [1]})
    looked_at = job(state_file, clock, "looked-at", after_polls=3)
    ended = job(state_file, clock, "ended-by-looks", after_polls=1, outcome="failed", error={"code": "X"})
    for each in (looked_at, ended, looked_at):
        clock.advance(1)
        state_file.poll(each)
    state_file.finish(job(state_file, clock, "cancelled"), "cancelled", {})
    state_file.finish(job(state_file, clock, "finished", outcome="never"), "completed", {"result": None})
    state_file.show_progress(job(state_file, clock, "shows", outcome="never"), {"step": 9})


def test_a_state_file_is_the_same_after_a_restart(file: Path, clock: Clock) -> None:
    """Every job with its submission, state, times, looks, progress and result, by id, session and key."""
    state_file = StateFile(file, clock)
    filled(state_file, clock)
    before = views(state_file, clock)
    state_file.close()
    again = StateFile(file, clock)
    assert views(again, clock) == before
    assert len(again.of_session("session-1")) == 7
    assert again.of_key("key-shows") is again.find("shows")
    again.close()


def test_time_goes_on_while_the_emulator_is_down(file: Path, clock: Clock) -> None:
    """A job whose time is over meanwhile is over after the restart, at the moment that was due."""
    state_file = StateFile(file, clock)
    due = clock.now + 100
    job(state_file, clock, "slow", after_seconds=100)
    state_file.close()
    clock.advance(1000)
    again = StateFile(file, clock)
    found = again.find("slow")
    assert found is not None and found.end is not None
    assert (found.end.state, found.end.at) == ("completed", due)
    again.close()


def test_a_state_file_goes_on_after_a_restart(file: Path, clock: Clock) -> None:
    """What happens after a restart is kept over the next one."""
    for number in range(3):
        state_file = StateFile(file, clock)
        job(state_file, clock, f"job {number}", outcome="never")
        if number:
            before = state_file.find(f"job {number - 1}")
            assert before is not None
            state_file.finish(before, "failed", {})
        state_file.close()
    state_file = StateFile(file, clock)
    assert [found.state(clock.now) for found in state_file] == ["failed", "failed", "pending"]
    state_file.close()


def test_a_torn_state_file_loses_its_last_line_at_most(file: Path, clock: Clock) -> None:
    """Cut anywhere, as by a kill in the middle of writing, the book opens with everything before the cut."""
    state_file = StateFile(file, clock)
    filled(state_file, clock)
    state_file.close()
    whole = file.read_bytes()
    for cut in sorted(random.Random(7).sample(range(len(whole)), 60)):
        file.write_bytes(whole[:cut])
        torn = StateFile(file, clock)
        lines = [json.loads(line) for line in whole[:cut].rpartition(b"\n")[0].splitlines()]
        assert [each.id for each in torn] == [
            line["submitted"]["id"] for line in lines if "submitted" in line
        ]
        job(torn, clock, "new")
        torn.close()
        again = StateFile(file, clock)
        assert again.find("new") is not None
        again.close()


def test_a_state_file_is_emptied_by_a_reset(file: Path) -> None:
    """After a reset nothing comes back."""
    with Emulator(state_file=file) as emulator:
        emulator.control.reset()
    assert file.read_bytes() == b""


@pytest.mark.parametrize(
    "text", ["a diary\n", "[]\n", '{"submitted": {}}\n', '{"polled": "nobody", "at": 1}\n']
)
def test_a_file_that_is_no_state_file(file: Path, clock: Clock, text: str) -> None:
    """It is refused by name, and not changed."""
    file.write_text(text)
    with pytest.raises(ValueError, match=r"jobs\.book is not a book"):
        StateFile(file, clock)
    assert file.read_text() == text


def test_a_state_file_has_one_writer(file: Path, clock: Clock) -> None:
    """A second emulator on the same file is refused, and takes it over once the first has ended."""
    state_file = StateFile(file, clock)
    with pytest.raises(ValueError, match="in use by another emulator"):
        StateFile(file, clock)
    state_file.close()
    StateFile(file, clock).close()


def test_a_state_file_is_free_again_when_the_emulator_cannot_listen(file: Path, emulator: Emulator) -> None:
    """An emulator that fails to start holds nothing."""
    port = int(emulator.base_url.split(":")[2].split("/")[0])
    with pytest.raises(OSError, match="in use"), Emulator(state_file=file, port=port):
        pass
    Emulator(state_file=file).close()
