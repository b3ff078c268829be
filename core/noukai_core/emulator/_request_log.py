"""The request log: which requests arrived when, about which job, and how many."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KINDS = ("submit", "poll", "cancel", "session", "verify", "trace", "stream", "runs", "other")

# An entry uses about 2 kB. The counts include requests that are no longer kept.
KEPT_REQUESTS = 50_000


@dataclass(slots=True)
class Entry:
    """One request, logged on its arrival and completed with its response."""

    kind: str
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    at: float
    job_id: str | None = None
    request_id: str | None = None
    status: int | None = None
    fault: str | None = None
    started: float = field(default_factory=time.monotonic)
    seconds: float | None = None

    def view(self) -> dict[str, Any]:
        """Return the request as JSON, without its key."""
        return {
            "kind": self.kind,
            "method": self.method,
            "path": self.path,
            "headers": {name.decode("latin-1"): _shown(name, value) for name, value in self.headers},
            "time": self.at,
            "job_id": self.job_id,
            "request_id": self.request_id,
            "status": self.status,
            "fault": self.fault,
            "seconds": self.seconds,
        }


_SECRET_HEADERS = (b"x-api-key", b"cookie", b"proxy-authorization")


def _shown(name: bytes, value: bytes) -> str:
    if name == b"authorization":
        return "Bearer ***" if value[:7].lower() == b"bearer " else "***"
    return "***" if name in _SECRET_HEADERS else value.decode("latin-1")


class Changes:
    """Wakes the requests that wait for a change, and all of them when the server stops."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self.stopped = False

    def notify(self) -> None:
        """Wake all waiters."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def stop(self) -> None:
        """Wake all waiters, and end every later wait at once."""
        self.stopped = True
        self.notify()

    async def wait(self, seconds: float) -> None:
        """Wait for the next change, for this long at most."""
        if self.stopped or seconds <= 0:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=seconds)
        finally:
            self._waiting.discard(waiter)

    async def pause(self, seconds: float) -> None:
        """Wait for this long, regardless of changes. Only the end of the server cuts it short."""
        await self.until(lambda: False, seconds)

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition holds, for this long at most, and return whether it does."""
        end = time.monotonic() + seconds
        while not condition():
            left = end - time.monotonic()
            if left <= 0 or self.stopped:
                return False
            await self.wait(left)
        return True


class RequestLog:
    """The last requests, oldest first, and exact counts of all."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._entries: deque[Entry] = deque(maxlen=KEPT_REQUESTS)
        self._counts: Counter[str] = Counter()
        self._by_job: dict[str, Counter[str]] = {}

    def arrived(self, entry: Entry) -> None:
        """Log a request."""
        self._entries.append(entry)
        self._counts[entry.kind] += 1
        if entry.job_id is not None:
            self._count_for(entry.job_id, entry.kind)
        self._changes.notify()

    def created(self, entry: Entry, job_id: str) -> None:
        """Record which job a submission has created."""
        entry.job_id = job_id
        self._count_for(job_id, entry.kind)
        self._changes.notify()

    def responded(self, entry: Entry, status: int | None) -> None:
        """Record the status of the response; none for a dropped connection."""
        entry.status = status
        entry.seconds = round(time.monotonic() - entry.started, 6)

    def counts(self, job_id: str | None = None) -> dict[str, int]:
        """Count the requests of each kind, about all jobs or one."""
        counts = self._counts if job_id is None else self._by_job.get(job_id, Counter[str]())
        return {kind: counts[kind] for kind in KINDS}

    def entries(self, kind: str | None = None, job_id: str | None = None) -> list[dict[str, Any]]:
        """List the requests that are kept, oldest first."""
        return [
            entry.view()
            for entry in self._entries
            if kind in (None, entry.kind) and job_id in (None, entry.job_id)
        ]

    def clear(self) -> None:
        """Forget all requests."""
        self._entries.clear()
        self._counts.clear()
        self._by_job.clear()

    def _count_for(self, job_id: str, kind: str) -> None:
        self._by_job.setdefault(job_id, Counter())[kind] += 1
