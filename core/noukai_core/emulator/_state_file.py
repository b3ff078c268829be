"""The book of all jobs, by id and by session, which may be kept in a file over a restart.

The file is a list of events, a line each, given to the operating system at once: whatever ends this process,
no more than the line that was being written is lost, and a torn last line is cut off when the book is opened
again. What follows from the clock alone is not written down.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Callable, Iterator
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any

from noukai_core.emulator._jobs import End, Job
from noukai_core.emulator._script import Spec


class AlreadyFinished(Exception):
    """The job has ended before, and stays as it is."""


class StateFile:
    """All jobs, found by id, by session and by idempotency key without a search."""

    def __init__(self, file: Path | None, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._sessions: dict[str, list[Job]] = {}
        self._keys: dict[str, Job] = {}
        self._file = _open(file) if file else None
        if self._file and file:
            self._read(self._file, file)

    def __iter__(self) -> Iterator[Job]:
        return map(self._settled, self._jobs.values())

    def add(self, job: Job) -> None:
        """Write a new job down."""
        self._enter(job)
        self._write({"submitted": {**_fields(job), "spec": _fields(job.spec)}})

    def find(self, job_id: str) -> Job | None:
        """Find a job by its id, as it is now."""
        job = self._jobs.get(job_id)
        return None if job is None else self._settled(job)

    def of_session(self, session_id: str) -> list[Job]:
        """List what was submitted under a session, oldest first."""
        return [self._settled(job) for job in self._sessions.get(session_id, ())]

    def of_key(self, idempotency_key: str) -> Job | None:
        """Find the first job that was submitted with an idempotency key."""
        return self._keys.get(idempotency_key)

    def newest(self, wanted: Callable[[Job], bool], limit: int) -> list[Job]:
        """List the newest jobs that are wanted, newest first."""
        return list(islice(filter(wanted, map(self._settled, reversed(self._jobs.values()))), limit))

    def poll(self, job: Job) -> None:
        """Count a look at a job, which may be the one that it was to end at."""
        job.polls += 1
        job.settle(self._clock())
        if job.spec.after_polls is not None:
            self._write({"polled": job.id, "at": self._clock()})

    def finish(self, job: Job, state: str, spec: dict[str, Any]) -> None:
        """End a job now."""
        job.settle(self._clock())
        if job.end is not None:
            raise AlreadyFinished(f"job {job.id} is {job.end.state} already")
        job.end = End(state, self._clock(), spec)
        self._write({"ended": job.id, "state": state, "at": job.end.at, "spec": spec})

    def show_progress(self, job: Job, progress: dict[str, Any]) -> None:
        """Let a job show how far it is."""
        job.shown_progress = progress
        self._write({"progressed": job.id, "progress": progress})

    def clear(self) -> None:
        """Forget all jobs."""
        for known in (self._jobs, self._sessions, self._keys):
            known.clear()
        if self._file:
            self._file.seek(0)
            self._file.truncate()

    def close(self) -> None:
        """Close the file; the jobs can still be looked at."""
        if self._file:
            self._file.close()
            self._file = None

    def _settled(self, job: Job) -> Job:
        job.settle(self._clock())
        return job

    def _enter(self, job: Job) -> None:
        self._jobs[job.id] = job
        if job.session_id:
            self._sessions.setdefault(job.session_id, []).append(job)
        if job.idempotency_key:
            self._keys.setdefault(job.idempotency_key, job)

    def _write(self, event: dict[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")

    def _read(self, file: FileIO, path: Path) -> None:
        file.seek(0)
        whole, newline, torn = file.readall().rpartition(b"\n")
        if torn:
            file.truncate(len(whole) + len(newline))
        try:
            for line in whole.splitlines():
                self._replay(json.loads(line))
        except (ValueError, TypeError, LookupError):
            file.close()
            raise ValueError(f"{path} is not a book of an emulator") from None

    def _replay(self, event: dict[str, Any]) -> None:
        if "submitted" in event:
            fields: dict[str, Any] = event["submitted"]
            fields["spec"] = Spec(**fields["spec"])
            self._enter(Job(**fields))
        elif "polled" in event:
            job = self._jobs[event["polled"]]
            job.polls += 1
            job.settle(event["at"])
        elif "ended" in event:
            self._jobs[event["ended"]].end = End(event["state"], event["at"], event["spec"])
        else:
            self._jobs[event["progressed"]].shown_progress = event["progress"]


def _fields(item: Job | Spec) -> dict[str, Any]:
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}


def _open(path: Path) -> FileIO:
    file = FileIO(path, "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"the book {path} is in use by another emulator") from None
    return file
