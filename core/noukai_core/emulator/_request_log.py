"""The log of requests: what was asked, when, about which job, and how often."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KINDS = ("submit", "poll", "cancel", "session", "verify", "trace", "stream", "runs", "other")

# A request takes about 2 kB here. The counts go on beyond what is kept.
KEPT_REQUESTS = 50_000


@dataclass(slots=True)
class Entry:
    """One request, written down when it arrives and completed when it is answered."""

    kind: str
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    at: float
    job_id: str | None = None
    request_id: str | None = None
    status: int | None = None
    fault: str | None = None
    began: float = field(default_factory=time.monotonic)
    seconds: float | None = None

    def view(self) -> dict[str, Any]:
        """Show the request, without the key that it carried."""
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


def _shown(name: bytes, value: bytes) -> str:
    if name == b"authorization":
        return "Bearer ***" if value[:7].lower() == b"bearer " else "***"
    return value.decode("latin-1")


class Changes:
    """Wakes whoever waits for something to happen here, and everybody when the server stops."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self.stopped = False

    def tell(self) -> None:
        """Wake all that wait for a change."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def stop(self) -> None:
        """Wake all, and let nobody wait again."""
        self.stopped = True
        self.tell()

    async def wait(self, seconds: float) -> None:
        """Wait for the next change, for so long at most."""
        if self.stopped or seconds <= 0:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=seconds)
        finally:
            self._waiting.discard(waiter)

    async def pause(self, seconds: float) -> None:
        """Let time pass, whatever happens; only the end of the server cuts it short."""
        await self.until(lambda: False, seconds)

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until something holds, for so long at most, and tell whether it does."""
        end = time.monotonic() + seconds
        while not condition():
            left = end - time.monotonic()
            if left <= 0 or self.stopped:
                return False
            await self.wait(left)
        return True


class RequestLog:
    """What was asked, newest last, and exact counts."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._entries: deque[Entry] = deque(maxlen=KEPT_REQUESTS)
        self._counts: Counter[str] = Counter()
        self._by_job: dict[str, Counter[str]] = {}

    def arrived(self, entry: Entry) -> None:
        """Write a request down."""
        self._entries.append(entry)
        self._counts[entry.kind] += 1
        if entry.job_id is not None:
            self._count_for(entry.job_id, entry.kind)
        self._changes.tell()

    def created(self, entry: Entry, job_id: str) -> None:
        """Write down which job a submission has made."""
        entry.job_id = job_id
        self._count_for(job_id, entry.kind)
        self._changes.tell()

    def answered(self, entry: Entry, status: int | None) -> None:
        """Write down how a request was answered: a status, or none for a dropped connection."""
        entry.status = status
        entry.seconds = round(time.monotonic() - entry.began, 6)

    def counts(self, job_id: str | None = None) -> dict[str, int]:
        """Count the requests of each kind, of all jobs or of one."""
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
