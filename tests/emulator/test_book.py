"""The book: the jobs that outlive the emulator."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from noukai_core.emulator import Emulator
from noukai_core.emulator.answers import entry
from noukai_core.emulator.book import Book
from noukai_core.emulator.jobs import Job
from noukai_core.emulator.script import Spec
from tests.emulator.driver import Clock

BODY = {"message": "hello ☃", "parameters": {"grade": 3}}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.book"


def job(book: Book, clock: Clock, name: str, **spec: Any) -> Job:
    made = Job(
        name, "acme/spelling/grade-3", clock.now, Spec(**spec), dict(BODY), 2, "session-1", f"key-{name}"
    )
    book.add(made)
    return made


def views(book: Book, clock: Clock) -> list[dict[str, Any]]:
    return [
        {**entry(job, clock.now), "result": job.result(), "progress": job.progress(clock.now)} for job in book
    ]


def filled(book: Book, clock: Clock) -> None:
    """One job of each kind of history."""
    job(book, clock, "runs", outcome="never", progress=[{"step": 1}], steps=[{"stepId": "draft"}])
    job(book, clock, "ends-by-time", after_seconds=100, result={"a": [1]})
    looked_at = job(book, clock, "looked-at", after_polls=3)
    ended = job(book, clock, "ended-by-looks", after_polls=1, outcome="failed", error={"code": "X"})
    for each in (looked_at, ended, looked_at):
        clock.advance(1)
        book.poll(each)
    book.finish(job(book, clock, "cancelled"), "cancelled", {})
    book.finish(job(book, clock, "finished", outcome="never"), "completed", {"result": None})
    book.show_progress(job(book, clock, "shows", outcome="never"), {"step": 9})


def test_a_book_is_the_same_after_a_restart(file: Path, clock: Clock) -> None:
    """Every job with its submission, state, times, looks, progress and result, by id, session and key."""
    book = Book(file, clock)
    filled(book, clock)
    before = views(book, clock)
    book.close()
    again = Book(file, clock)
    assert views(again, clock) == before
    assert len(again.of_session("session-1")) == 7
    assert again.of_key("key-shows") is again.find("shows")
    again.close()


def test_time_goes_on_while_the_emulator_is_down(file: Path, clock: Clock) -> None:
    """A job whose time is over meanwhile is over after the restart, at the moment that was due."""
    book = Book(file, clock)
    due = clock.now + 100
    job(book, clock, "slow", after_seconds=100)
    book.close()
    clock.advance(1000)
    again = Book(file, clock)
    found = again.find("slow")
    assert found is not None and found.end is not None
    assert (found.end.state, found.end.at) == ("completed", due)
    again.close()


def test_a_book_goes_on_after_a_restart(file: Path, clock: Clock) -> None:
    """What happens after a restart is kept over the next one."""
    for number in range(3):
        book = Book(file, clock)
        job(book, clock, f"job {number}", outcome="never")
        if number:
            before = book.find(f"job {number - 1}")
            assert before is not None
            book.finish(before, "failed", {})
        book.close()
    book = Book(file, clock)
    assert [found.state(clock.now) for found in book] == ["failed", "failed", "pending"]
    book.close()


def test_a_torn_book_loses_its_last_line_at_most(file: Path, clock: Clock) -> None:
    """Cut anywhere, as by a kill in the middle of writing, the book opens with everything before the cut."""
    book = Book(file, clock)
    filled(book, clock)
    book.close()
    whole = file.read_bytes()
    for cut in sorted(random.Random(7).sample(range(len(whole)), 60)):
        file.write_bytes(whole[:cut])
        torn = Book(file, clock)
        lines = [json.loads(line) for line in whole[:cut].rpartition(b"\n")[0].splitlines()]
        assert [each.id for each in torn] == [
            line["submitted"]["id"] for line in lines if "submitted" in line
        ]
        job(torn, clock, "new")
        torn.close()
        again = Book(file, clock)
        assert again.find("new") is not None
        again.close()


def test_a_book_is_emptied_by_a_reset(file: Path) -> None:
    """After a reset nothing comes back."""
    with Emulator(book=file) as emulator:
        emulator.control.reset()
    assert file.read_bytes() == b""


@pytest.mark.parametrize(
    "text", ["a diary\n", "[]\n", '{"submitted": {}}\n', '{"polled": "nobody", "at": 1}\n']
)
def test_a_file_that_is_no_book(file: Path, clock: Clock, text: str) -> None:
    """It is refused by name, and not changed."""
    file.write_text(text)
    with pytest.raises(ValueError, match=r"jobs\.book is not a book"):
        Book(file, clock)
    assert file.read_text() == text


def test_a_book_has_one_writer(file: Path, clock: Clock) -> None:
    """A second emulator on the same file is refused, and takes it over once the first has ended."""
    book = Book(file, clock)
    with pytest.raises(ValueError, match="in use by another emulator"):
        Book(file, clock)
    book.close()
    Book(file, clock).close()


def test_a_book_is_free_again_when_the_emulator_cannot_listen(file: Path, emulator: Emulator) -> None:
    """An emulator that fails to start holds nothing."""
    port = int(emulator.base_url.split(":")[2].split("/")[0])
    with pytest.raises(OSError, match="in use"), Emulator(book=file, port=port):
        pass
    Emulator(book=file).close()
