"""All jobs, by id and by session, optionally kept in a state file across restarts.

The state file is a log of events, one per line. Each line is passed to the operating system at once, so a
crash loses no more than the line that is being written, and a torn last line is cut off when the file is
opened again. What follows from the clock alone is not recorded.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any

from noukai_core.emulator._jobs import End, Job
from noukai_core.emulator._script import Spec

_FIRST_BYTES = b'{"submitted":{"id":'


class AlreadyFinishedError(Exception):
    """The job has already ended, and stays as it is."""


class JobStore:
    """All jobs, indexed by id, session and idempotency key."""

    def __init__(self, state_file: Path | None, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._sessions: dict[str, list[Job]] = {}
        self._keys: dict[str, Job] = {}
        self._file = _open(state_file) if state_file else None
        if self._file and state_file:
            self._read(self._file, state_file)

    def __iter__(self) -> Iterator[Job]:
        return map(self._updated, self._jobs.values())

    def add(self, job: Job) -> None:
        """Add a new job."""
        self._index(job)
        self._write({"submitted": {**_fields(job), "spec": _fields(job.spec)}})

    def find(self, job_id: str) -> Job | None:
        """Return a job by its id, up to date."""
        job = self._jobs.get(job_id)
        return None if job is None else self._updated(job)

    def of_session(self, session_id: str) -> list[Job]:
        """List the jobs of a session, oldest first."""
        return [self._updated(job) for job in self._sessions.get(session_id, ())]

    def of_idempotency_key(self, idempotency_key: str) -> Job | None:
        """Return the first job that was submitted with an idempotency key."""
        return self._keys.get(idempotency_key)

    def newest(self, matches: Callable[[Job], bool], limit: int) -> list[Job]:
        """List the newest jobs that match, newest first."""
        return list(islice(filter(matches, map(self._updated, reversed(self._jobs.values()))), limit))

    def poll(self, job: Job) -> None:
        """Count a poll, which may end the job."""
        job.polls += 1
        job.update(self._clock())
        if job.spec.after_polls is not None:
            self._write({"polled": job.id, "at": self._clock()})

    def finish(self, job: Job, state: str, spec: dict[str, Any]) -> None:
        """End a job now."""
        job.update(self._clock())
        if job.end is not None:
            raise AlreadyFinishedError(f"job {job.id} is already {job.end.state}")
        job.end = End(state, self._clock(), spec)
        self._write({"ended": job.id, "state": state, "at": job.end.at, "spec": spec})

    def show_progress(self, job: Job, progress: dict[str, Any]) -> None:
        """Set the progress that a job shows."""
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
        """Close the file. The jobs can still be read."""
        if self._file:
            self._file.close()
            self._file = None

    def _updated(self, job: Job) -> Job:
        job.update(self._clock())
        return job

    def _index(self, job: Job) -> None:
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
        complete, newline, torn = file.readall().rpartition(b"\n")
        try:
            # A file that is not a state file keeps every byte: a state file begins as its own lines do.
            if torn and not complete and not torn.startswith(_FIRST_BYTES[: len(torn)]):
                raise ValueError(torn)
            for line in complete.splitlines():
                self._replay(json.loads(line))
        except (ValueError, TypeError, LookupError, AttributeError):
            file.close()
            raise ValueError(f"{path} is not a state file of an emulator") from None
        if torn:
            file.truncate(len(complete) + len(newline))

    def _replay(self, event: dict[str, Any]) -> None:
        if "submitted" in event:
            fields: dict[str, Any] = event["submitted"]
            fields["spec"] = Spec(**fields["spec"])
            self._index(Job(**fields))
        elif "polled" in event:
            job = self._jobs[event["polled"]]
            job.polls += 1
            job.update(event["at"])
        elif "ended" in event:
            self._jobs[event["ended"]].end = End(event["state"], event["at"], event["spec"])
        else:
            self._jobs[event["progressed"]].shown_progress = event["progress"]


def _fields(item: Job | Spec) -> dict[str, Any]:
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}


def _open(path: Path) -> FileIO:
    file = FileIO(path, "a+", opener=_open_private)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"the state file {path} is in use by another emulator") from None
    return file


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
