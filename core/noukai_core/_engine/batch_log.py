"""The log of a batch: thousands of jobs would hide what matters if each wrote the lines of a single job."""

from __future__ import annotations

import logging
import math

from noukai_core._engine.effects import Clock
from noukai_core._text import one_line
from noukai_core.batch import JobOutcome, OutcomeState

log = logging.getLogger("noukai_core")

WARNING_PAUSE = 60.0
"""Seconds between two warnings of a kind, whichever jobs they are about."""


class EachJobLog:
    """Takes the lines about single jobs. They are at DEBUG, but for one warning of each kind a minute.

    Args:
        clock: Seconds, from any beginning.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._warned_at: dict[str, float] = {}

    def info(self, message: str, /, *values: object) -> None:
        """Log what a single job would log at INFO."""
        log.debug(message, *values)

    def warning(self, message: str, /, *values: object) -> None:
        """Log what a single job would log as a warning."""
        now = self._clock()
        if now - self._warned_at.get(message, -math.inf) < WARNING_PAUSE:
            log.debug(message, *values)
            return
        self._warned_at[message] = now
        log.warning(message, *values)


def log_outcome(flow: str, outcome: JobOutcome) -> None:
    """Name an input whose job did not complete, with the reason. That the batch was stopped is none."""
    if outcome.state in (OutcomeState.COMPLETED, OutcomeState.NOT_SUBMITTED):
        return
    state = outcome.state.replace("_", " ")
    reason = one_line(outcome.reason or "the server gave no reason")
    if outcome.job_id is None:
        log.warning("Noukai batch of %s: input %d %s (%s)", flow, outcome.index, state, reason)
    else:
        log.warning(
            "Noukai job %s of %s: %s (input %d: %s)", outcome.job_id, flow, state, outcome.index, reason
        )
