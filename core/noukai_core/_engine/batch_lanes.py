"""The sessions of a batch: those in which it submits, and those in which an earlier run did."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable

from noukai_core._api.job_ids import canonical_job_id
from noukai_core._engine.effects import Clock, Effects, Spawn
from noukai_core._engine.lanes import Lane, Trust
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath
from noukai_core.batch import LedgerEntry, new_session_of


class BatchLanes:
    """Opens the lanes of a batch.

    Args:
        batch_id: The batch.
        flow: Its flow.
        settings: Those of the client.
        limiter: The rate limit that all jobs share.
        clock: Seconds, from any beginning.

    Attributes:
        trust: What the batch has learnt about the lists of sessions.
        running: The jobs that may be running, by their canonical ids.
    """

    def __init__(
        self,
        batch_id: uuid.UUID,
        flow: FlowPath,
        settings: ClientOptions,
        limiter: PollRateLimiter,
        clock: Clock,
    ) -> None:
        self.trust = Trust(str(flow), settings)
        self.running: set[str] = set()
        self._batch_id = batch_id
        self._settings = settings
        self._limiter = limiter
        self._clock = clock
        self._known: dict[str, set[str]] = {}
        self._earlier: dict[str, Lane] = {}

    def note(self, entries: Iterable[LedgerEntry]) -> None:
        """Take note of the jobs that an earlier run submitted."""
        for entry in entries:
            if entry.job_id is not None:
                self._known.setdefault(entry.session_id, set()).add(entry.job_id)

    def open(self, on_unknown: Callable[[], None]) -> Lane:
        """Return a lane in a new session, for many jobs.

        Args:
            on_unknown: Is called when a submission in it has an unknown outcome.
        """
        return self._lane(new_session_of(self._batch_id), on_unknown=on_unknown)

    def open_for_one(self) -> Lane:
        """Return a lane in a new session, for a single job."""
        return self._lane(new_session_of(self._batch_id), takes_jobs=False)

    def earlier(self, session_id: str) -> Lane:
        """Return the lane of a session in which an earlier run submitted. Those of this run are not kept."""
        lane = self._earlier.get(session_id)
        if lane is None:
            lane = self._earlier[session_id] = self._lane(session_id, takes_jobs=False)
            for job_id in self._known.get(session_id, ()):
                lane.known.add(job_id)
        return lane

    def forget(self, job_id: str | None) -> None:
        """Take note that a job has ended, or does not exist."""
        if job_id is not None:
            self.running.discard(canonical_job_id(job_id))

    def watch(self, lane: Lane) -> Effects[None]:
        """Let a strand of its own poll the session, unless one does."""
        if not lane.watching:
            lane.watching = True
            yield Spawn(lane.watch())

    def _lane(
        self, session_id: str, *, on_unknown: Callable[[], None] | None = None, takes_jobs: bool = True
    ) -> Lane:
        return Lane(
            session_id,
            self.trust,
            self._settings,
            self._limiter,
            self._clock,
            running=self.running,
            on_unknown=on_unknown,
            takes_jobs=takes_jobs,
        )
