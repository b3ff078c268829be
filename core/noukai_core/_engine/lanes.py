"""Watch the jobs of one session together: one request tells the states of all of them.

The list of a session is a hint for when to poll a job, and the job's own route the truth. So each job is
still polled itself, though rarely, and as often as without a list where the list says nothing of it.
"""

from __future__ import annotations

import logging
import math
import random
from base64 import urlsafe_b64encode
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from noukai_core._api import endpoints
from noukai_core._api.endpoints import Execution
from noukai_core._api.job_ids import canonical_job_id
from noukai_core._engine import schedule
from noukai_core._engine.effects import Clock, Effects, Send, Sleep, Wake, is_limited
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._engine.submit import SharedSession, may_be_job
from noukai_core._engine.wait import poll_with_retries, reach_slot
from noukai_core._options import ClientOptions
from noukai_core.errors import APIError
from noukai_core.models import JobState, JobStatus

log = logging.getLogger("noukai_core")

MAX_JOBS = 100
"""The most jobs that are submitted in one session."""

FEW_JOBS = 2
"""So many unfinished jobs of a session are polled themselves, which costs no more than the list."""

OWN_PAUSE = 60.0
"""Seconds between two polls of a job whose state the list tells."""

OWN_SHARE = 0.2
"""The most of the rate limit that such polls take, all together; with many jobs they come less often."""

STALE_AFTER = 15.0
"""Seconds after which a list that does not show the end of a job is not believed any more; or a tenth of
the job's age, if that is more."""

BELIEVED_FOR = 1800.0
"""Seconds from the submission for which a list alone says that a job of an earlier run has not ended."""

MAX_FAILURES = 3
"""How often in a row the list may fail before each job is polled instead."""

_DIGEST_LENGTH = 8

ENDED = tuple(state for state in JobState if state.finished)


class Trust:
    """What a batch has learnt about the lists of sessions.

    Attributes:
        flow: The flow.
        proven: Whether a list has told the state of a job.
        unfinished: How many jobs of the batch have not ended.
    """

    def __init__(self, flow: str, settings: ClientOptions) -> None:
        self.proven = False
        self.unfinished = 0
        self.flow = flow
        self._spared_polls = settings.max_polls_per_second * OWN_SHARE
        self._logged = False

    def own_pause(self, jitter: float) -> float:
        """Return the pause between two polls of a job whose state the list tells."""
        return schedule.jittered(max(OWN_PAUSE, self.unfinished / self._spared_polls), jitter)

    def complain(self, reason: object) -> None:
        """Say once that jobs are polled one by one."""
        if not self._logged:
            self._logged = True
            log.warning("Noukai batch of %s: polling each job (%s)", self.flow, reason)


@dataclass(slots=True, eq=False)
class WatchedJob:
    """A job of a session, for its `Poller`.

    Attributes:
        lane: Its session.
        job_id: The job.
        submitted_at: When it was submitted, on the clock.
        canonical_id: What a list may name it by, in whichever way it writes ids.
        listed: Whether the last list told its state.
        was_listed: Whether any list did. One that does not any more says nothing of the job.
        ended: Whether a list says that it has ended.
        running: Whether its own route has said that it runs.
        jitter: Its place in the spread of the pauses, from 0 to 1.
        wake: Rings when it should be polled.
    """

    lane: Lane
    job_id: str
    submitted_at: float
    canonical_id: str
    listed: bool = False
    was_listed: bool = False
    ended: bool = False
    running: bool = False
    jitter: float = field(default_factory=random.random)
    wake: Wake = field(default_factory=Wake)

    def pause(self, usual: float, status: JobStatus | None) -> float:
        """Return the pause before the next poll: a long one while the list tells enough."""
        self.running = status is not None and status.state != JobState.PENDING
        return self.lane.trust.own_pause(self.jitter) if self.lane.tells_of(self) else usual


class KnownJobs(Collection[str]):
    """The jobs of a session that are known to belong to some input, by their canonical ids.

    Of those of an earlier run, it may have no more than digests.
    """

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self._digests: set[str] = set()

    def __contains__(self, job_id: object) -> bool:
        if not isinstance(job_id, str):
            return False
        canonical = canonical_job_id(job_id)
        return canonical in self.ids or (bool(self._digests) and _digest(canonical) in self._digests)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self._digests.union(map(_digest, self.ids))) if self._digests else len(self.ids)

    def add(self, job_id: str) -> None:
        """Take note of a job."""
        self.ids.add(canonical_job_id(job_id))

    def digests(self) -> str:
        """Return what `add_digests` needs to recognise these jobs."""
        return "".join(sorted(self._digests | set(map(_digest, self.ids))))

    def add_digests(self, text: str) -> None:
        """Recognise the jobs of an earlier run."""
        self._digests.update(
            text[start : start + _DIGEST_LENGTH] for start in range(0, len(text), _DIGEST_LENGTH)
        )


def _digest(job_id: str) -> str:
    return urlsafe_b64encode(blake2b(job_id.encode(), digest_size=6).digest()).decode()


class Lane:
    """One session of a batch.

    Args:
        session_id: The session.
        trust: What the batch has learnt about lists.
        settings: How the client polls.
        limiter: The rate limit that all jobs share.
        clock: Seconds, from any beginning.
        running: The jobs of the batch that may be running, in any session, by their canonical ids.
        on_unknown: Is called when a submission in it has an unknown outcome.
        takes_jobs: Whether jobs are still submitted in it.

    Attributes:
        session: The session, as a submission needs it.
        known: All jobs in it that are known to be of this batch.
        trust: What the batch has learnt about lists.
        takes_jobs: Whether jobs are still submitted in it.
        had_unknown: Whether a submission in it had an unknown outcome. It is then the last one.
        submitting: Whether the outcome of a submission in it is awaited.
        watching: Whether somebody runs `watch`.
    """

    def __init__(
        self,
        session_id: str,
        trust: Trust,
        settings: ClientOptions,
        limiter: PollRateLimiter,
        clock: Clock,
        *,
        running: Container[str] = (),
        on_unknown: Callable[[], None] | None = None,
        takes_jobs: bool = True,
    ) -> None:
        self.known = KnownJobs()
        self.session = SharedSession(session_id, self.known, running, self._note_unknown, limiter)
        self.trust = trust
        self.takes_jobs = takes_jobs
        self.had_unknown = False
        self.submitting = False
        self._has_stranger = False
        self.watching = False
        self._on_unknown = on_unknown
        self._settings = settings
        self._limiter = limiter
        self._clock = clock
        self._jobs: dict[str, WatchedJob] = {}
        self._ended_at: dict[str, tuple[float, float]] = {}
        self._readable = True
        self._asked = False
        self._changed = Wake()
        self._failures = 0
        self._listed: dict[str, JobState | str] | None = None
        self._asking = False
        self._responded = Wake()

    @property
    def unfinished(self) -> int:
        """How many jobs in it have not ended."""
        return len(self._jobs)

    @property
    def full(self) -> bool:
        """Whether nothing more is submitted in it."""
        return self.had_unknown or self._has_stranger or len(self.known) >= MAX_JOBS

    def add(self, job_id: str, submitted_at: float) -> WatchedJob:
        """Watch a job that was submitted in it."""
        self.known.add(job_id)
        canonical_id = canonical_job_id(job_id)
        job = self._jobs[canonical_id] = WatchedJob(self, job_id, submitted_at, canonical_id)
        self._changed.ring()
        return job

    def remove(self, job: WatchedJob, *, ended: bool) -> None:
        """Watch a job no longer.

        Args:
            job: The job.
            ended: Whether its own route has said that it has ended.
        """
        if self._jobs.pop(job.canonical_id, None) is None:
            return
        if ended:
            now = self._clock()
            self._ended_at[job.canonical_id] = (now, now - job.submitted_at)
        if len(self._jobs) == FEW_JOBS:
            self._poll_each()
        self._changed.ring()

    def close(self) -> None:
        """Submit nothing more in it."""
        self.takes_jobs = False
        self._changed.ring()

    def tells_of(self, job: WatchedJob) -> bool:
        """Whether the list tells so much of a job that it need not be polled itself."""
        if not self.watching or not self._readable or job.ended or len(self._jobs) <= FEW_JOBS:
            return False
        # A job that is not listed has not begun to run, if the lists of this server tell at all.
        unseen = not job.running and not job.was_listed
        return job.listed or (unseen and self.trust.proven) or not self._asked

    def lists_as_unfinished(self, job_id: str) -> Effects[bool]:
        """Tell whether the list says of a job of an earlier run that it has not ended.

        One request is sent, for all jobs of the session. Where it fails, the list says nothing.
        """
        if len(self.known) <= FEW_JOBS:
            return False
        while self._listed is None:
            if self._asking:
                yield Sleep(math.inf, self._responded)
                continue
            self._asking = True
            try:
                self._listed = yield from self._states()
            finally:
                self._asking = False
                self._responded.ring()
        state = self._listed.get(canonical_job_id(job_id))
        return state is not None and state not in ENDED

    def _states(self) -> Effects[dict[str, JobState | str]]:
        call = endpoints.session(self.session.id)
        try:
            listed = yield from poll_with_retries(call, self._limiter, self._clock)
        except APIError as error:
            self.trust.complain(error)
            return {}
        return _states_of(listed)

    def watch(self) -> Effects[None]:
        """Ask for the list again and again, until no job is left and no more come."""
        while self._jobs or self.takes_jobs:
            if len(self._jobs) <= FEW_JOBS:
                yield Sleep(math.inf, self._changed)
                continue
            yield Sleep(self._pause())
            if len(self._jobs) <= FEW_JOBS:
                continue
            yield from reach_slot(self._limiter, self._clock)
            sent_at, quiet = self._clock(), not self.submitting
            outcome: tuple[Execution, ...] | APIError = yield Send(endpoints.session(self.session.id))
            if isinstance(outcome, APIError):
                yield from self._after_error(outcome)
            else:
                self._failures = 0
                self._note(outcome, sent_at)
                if quiet and not self.submitting:
                    self._note_strangers(outcome)

    def _pause(self) -> float:
        if not self._readable:
            return schedule.LONGEST_PAUSE
        if not self._asked and not self.takes_jobs:
            return 0.0
        now = self._clock()
        age = now - max(job.submitted_at for job in self._jobs.values())
        return schedule.align_to_tick(now, schedule.pause_before_poll(age, self._settings.poll_interval))

    def _after_error(self, error: APIError) -> Effects[None]:
        self._failures += 1
        if limited := is_limited(error):
            self._limiter.slow_down(self._clock())
        # To poll each job instead would be a hundred times as many requests.
        if not error.retryable or (not limited and self._failures > MAX_FAILURES):
            self._doubt(error)
        asked = min(error.retry_after or 0.0, self._settings.retry_timeout)
        yield Sleep(max(schedule.backoff(self._failures), asked))

    def _note(self, executions: tuple[Execution, ...], sent_at: float) -> None:
        """Take note of a list."""
        covered = [job for job in self._jobs.values() if self.tells_of(job)]
        self._asked = self._readable = True
        states = _states_of(executions)
        for job in self._jobs.values():
            state = states.get(job.canonical_id)
            job.listed, job.ended = state is not None, state in ENDED
            self.trust.proven = self.trust.proven or job.listed
            job.was_listed = job.was_listed or job.listed
            if (job.running or job.was_listed) and not job.listed:
                self.trust.complain(
                    f"the list of the session {self.session.id} does not tell the state of {job.job_id}"
                )
        for job_id, (ended_at, age) in list(self._ended_at.items()):
            if states.get(job_id) in ENDED:
                del self._ended_at[job_id]
            elif job_id in states and sent_at - ended_at > max(STALE_AFTER, age * schedule.AGE_SHARE):
                self._doubt(
                    f"the list of the session {self.session.id} does not show that {job_id} has ended"
                )
        for job in covered:
            if not self.tells_of(job):
                job.wake.ring()

    def _note_strangers(self, executions: tuple[Execution, ...]) -> None:
        """Submit nothing more beside a job that nobody knows: the next one could not be told from it."""
        strangers = [one for one in executions if may_be_job(one) and one.id not in self.known]
        if strangers and self.takes_jobs:
            log.warning(
                "Noukai batch of %s: nothing more is submitted in the session %s: no input has the job %s",
                self.trust.flow,
                self.session.id,
                strangers[0].id,
            )
            self._has_stranger = True
            self.close()

    def _doubt(self, reason: object) -> None:
        """Poll each job as often as without a list."""
        self.trust.complain(reason)
        self._readable = False
        self._poll_each()

    def _poll_each(self) -> None:
        for job in list(self._jobs.values()):
            job.wake.ring()

    def _note_unknown(self) -> None:
        if not self.had_unknown:
            self.had_unknown = True
            self.close()
            if self._on_unknown is not None:
                self._on_unknown()


def _states_of(listed: tuple[Execution, ...]) -> dict[str, JobState | str]:
    return {
        canonical_job_id(one.id): one.state for one in listed if one.id is not None and one.state is not None
    }
