"""What the jobs of a batch came to so far, and when nothing more is submitted because of it."""

from __future__ import annotations

import logging
from collections import Counter
from decimal import Decimal

from noukai_core._engine.batch_options import BatchOptions
from noukai_core._validation import FlowPath
from noukai_core.batch import JobOutcome, OutcomeState

log = logging.getLogger("noukai_core")

MIN_ENDED_FOR_SHARE = 20
"""How many jobs have to have ended before a share of failures says anything."""


class BatchTotals:
    """The sums of a batch.

    Args:
        flow: The flow.
        options: How the batch runs.

    Attributes:
        counts: How many inputs ended in each state.
        tokens: The tokens of all that has ended, as far as known.
        cost_usd: What it cost, as far as known.
        jobs_without_cost: Of how many jobs that is not known.
        most_usd: The most that it may cost, if there is a limit.
        submitted: How many inputs are known to have a job, those of earlier runs included.
        stopped: Why nothing more is submitted, if so.
    """

    def __init__(self, flow: FlowPath, options: BatchOptions) -> None:
        self.counts: Counter[OutcomeState] = Counter()
        self.tokens = 0
        self.cost_usd = Decimal(0)
        self.jobs_without_cost = 0
        self.most_usd = options.most_usd()
        self.submitted = 0
        self.stopped: str | None = None
        self._flow = flow
        self._spent_usd = options.already_spent_usd()
        self._most_failures = options.stop_after_failures

    def add(self, outcome: JobOutcome) -> None:
        """Count what came of an input, and stop the batch if it is too much."""
        self.counts[outcome.state] += 1
        self.tokens += outcome.tokens or 0
        self.cost_usd += outcome.cost_usd or 0
        self.jobs_without_cost += outcome.lacks_cost
        if outcome.lacks_cost and self.most_usd is not None:
            self.stop(f"it is not known what job {outcome.job_id} cost, so max_cost_usd cannot be kept")
        self.check_cost()
        if self._too_many_failures():
            failed, ended = self._failures_of_ended()
            self.stop(f"{failed} of {ended} jobs did not complete (stop_after_failures)")

    def check_cost(self) -> None:
        """Stop the batch if what has ended cost too much, or may have."""
        if self.most_usd is None:
            return
        if self._spent_usd is None:
            self.stop("it is not known what all jobs of earlier runs cost, so max_cost_usd cannot be kept")
        elif (spent := self.cost_usd + self._spent_usd) >= self.most_usd:
            self.stop(f"the jobs that have ended cost ${spent}, of max_cost_usd ${self.most_usd}")

    def stop(self, reason: str) -> None:
        """Submit nothing more. What runs is waited for."""
        if self.stopped is None:
            self.stopped = f"Not submitted: {reason}"
            log.warning("Noukai batch of %s: nothing more is submitted: %s", self._flow, reason)

    def _failures_of_ended(self) -> tuple[int, int]:
        ended = sum(self.counts.values()) - self.counts[OutcomeState.NOT_SUBMITTED]
        return ended - self.counts[OutcomeState.COMPLETED], ended

    def _too_many_failures(self) -> bool:
        limit = self._most_failures
        failed, ended = self._failures_of_ended()
        if limit is None:
            return False
        if isinstance(limit, int):
            return failed >= limit
        return ended >= MIN_ENDED_FOR_SHARE and failed > limit * ended
