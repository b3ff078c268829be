"""Follow the steps of a job: through streams that break, stall and repeat themselves, each step once."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Generator, Hashable
from typing import TypeAlias

from noukai_core._api import endpoints
from noukai_core._api.events import ServerEvent, StepEvent, ends_run, event_id, read_step
from noukai_core._engine import schedule
from noukai_core._engine.effects import (
    Clock,
    Effects,
    EmitStep,
    FollowEffects,
    Receive,
    Send,
    Sleep,
    is_limited,
    may_turn_up,
)
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._engine.wait import reach_slot
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath
from noukai_core.errors import APIError, InvalidResponseError, ResponseTooLargeError, TransientError
from noukai_core.models import JobStatus, TraceStep

_MOST_EVENTS = 10_000
_STATE_BYTES = 1024 * 1024


class StepFollower:
    """One job whose steps are followed.

    Args:
        flow: The flow of the job.
        job_id: The job.
        settings: Those of the client.
        limiter: The rate limit that all polls share.
        clock: Seconds, from any beginning.
        race_ends: Until when, on that clock, a job that was just submitted may be unknown.
        skip: How many steps are passed over: those that were shown before.
    """

    def __init__(
        self,
        flow: FlowPath,
        job_id: str,
        settings: ClientOptions,
        limiter: PollRateLimiter,
        clock: Clock,
        *,
        race_ends: float,
        skip: int = 0,
    ) -> None:
        self._flow = flow
        self._job_id = job_id
        self._settings = settings
        self._limiter = limiter
        self._clock = clock
        self._race_ends = race_ends
        self._skip = skip
        self._history = _History()
        self._last_event_id: str | None = None
        self._completed = False

    def effects(self) -> FollowEffects:
        """Emit each step that starts, completes or fails, until the job has ended.

        The end of a stream proves nothing, so the job is polled after it.

        Raises:
            APIError: The stream is refused, breaks for too long, or too many jobs are followed already.
        """
        _followed.enter(self._settings.max_followed_jobs, self._flow, self._job_id)
        try:
            yield from self._follow()
        finally:
            _followed.leave()

    def _follow(self) -> FollowEffects:
        failing_since: float | None = None
        fruitless, ended = 0, False
        while True:
            responded, shown, error = yield from self._read()
            # A stream that ended before its job lacks the last steps, so it is read once more after that.
            if self._completed or (ended and (responded or error is None)):
                return
            fruitless = 0 if shown else fruitless + 1
            pause = schedule.backoff(fruitless + 1)
            if error is None:
                failing_since = None
            else:
                now = self._clock()
                failing_since = now if shown or failing_since is None else failing_since
                left = self._retried_until(error, now, failing_since) - now
                pause = schedule.pause_after_error(fruitless + 1, pause, error.retry_after, left=left)
            if not ended:
                outcome = yield from self._poll()
                if isinstance(outcome, APIError):
                    asked = min(outcome.retry_after or 0.0, self._settings.retry_timeout)
                    pause = max(pause, asked)
                elif outcome.finished:
                    ended = True
                    continue
            yield Sleep(pause)

    def _read(self) -> _Reading:
        """Read one connection to its end.

        Returns:
            Whether there was an event, whether there was a new one, and what ended the connection.
        """
        call = endpoints.stream(self._flow, self._job_id, self._last_event_id)
        self._history.begin_connection()
        responded = shown = False
        while True:
            event = yield Receive(call)
            if event is None or isinstance(event, APIError):
                return responded, shown, event
            responded = True
            self._last_event_id = event_id(event) or self._last_event_id
            if ends_run(event):
                self._completed = True
                return responded, shown, None
            read = read_step(event, self._settings.api_key)
            step = None if read is None else self._history.add(read, event_id(event))
            if step is not None:
                shown = True
                self._skip -= 1
                if self._skip < 0:
                    yield EmitStep(step)
            if self._history.is_full:
                too_many = ResponseTooLargeError(
                    f"Following job {self._job_id} of {self._flow}: more than {_MOST_EVENTS} events of steps",
                    job_id=self._job_id,
                )
                return responded, shown, too_many

    def _retried_until(self, error: APIError, now: float, failing_since: float) -> float:
        """Return until when another connection may help, or raise the error if none can."""
        if may_turn_up(error, now, self._race_ends):
            return self._race_ends
        retry_window_ends = failing_since + self._settings.retry_timeout
        if not error.retryable or isinstance(error, InvalidResponseError) or now >= retry_window_ends:
            raise error
        return retry_window_ends

    def _poll(self) -> Effects[JobStatus | APIError]:
        """Poll the job, or return the error after which another poll may help."""
        yield from reach_slot(self._limiter, self._clock)
        outcome: JobStatus | APIError = yield Send(endpoints.status(self._flow, self._job_id, _STATE_BYTES))
        now = self._clock()
        if not isinstance(outcome, APIError):
            self._limiter.last_success_at = now
        elif is_limited(outcome):
            self._limiter.slow_down(now)
        elif not outcome.retryable and not may_turn_up(outcome, now, self._race_ends):
            raise outcome
        return outcome


_Reading: TypeAlias = Generator[
    Receive | EmitStep, ServerEvent | APIError | None, tuple[bool, bool, APIError | None]
]


class _History:
    """Which steps a run has shown already.

    A server may begin each connection with all that has happened. So an event is known by what it says and by
    how often the connection has said it; if the server numbers its events, by the number.
    """

    def __init__(self) -> None:
        self._known = Counter[Hashable]()
        self._here = Counter[Hashable]()
        self._last = dict[Hashable, tuple[str | None, int | None]]()
        self._failures = Counter[Hashable]()
        self._size = 0

    @property
    def is_full(self) -> bool:
        """Whether there were so many events that no more are remembered."""
        return self._size > _MOST_EVENTS

    def begin_connection(self) -> None:
        """Expect the server to begin from the start."""
        self._here.clear()
        self._last.clear()
        self._failures.clear()

    def add(self, event: StepEvent, number: str | None) -> TraceStep | None:
        """Return the step of an event that is new, with its attempt."""
        step, name = event.step, (event.step.id, event.loop)
        said = (step.status, step.attempt)
        if number is None and self._last.get(name) == said:
            return None
        self._last[name] = said
        attempt = step.attempt or self._failures[name] + 1
        if step.status == "failed":
            self._failures[name] += 1
        sign = (number, name, said)
        self._here[sign] += 1
        if self._here[sign] <= self._known[sign] or (number is not None and self._here[sign] > 1):
            return None
        self._known[sign] = self._here[sign]
        self._size += 1
        return step.model_copy(update={"attempt": attempt})


class _FollowedJobs:
    """How many jobs this process follows, whichever client does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def enter(self, most: int, flow: FlowPath, job_id: str) -> None:
        with self._lock:
            if self._count >= most:
                raise TransientError(
                    f"Following job {job_id} of {flow}: this process follows {most} jobs already "
                    "(max_followed_jobs)",
                    job_id=job_id,
                    never_processed=True,
                )
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1

    def restart(self) -> None:
        """Begin with none, in the child of a fork. A thread of the parent may hold its lock."""
        self._lock = threading.Lock()
        self._count = 0


_followed = _FollowedJobs()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_followed.restart)
