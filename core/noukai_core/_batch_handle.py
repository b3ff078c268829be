"""What the handles of both drivers show of a batch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterable, Iterable
from decimal import Decimal

from noukai_core._engine.batch import Batch
from noukai_core._validation import refused
from noukai_core.batch import LedgerEntry
from noukai_core.cancellation import CancelOutcome
from noukai_core.checks import has_keys

log = logging.getLogger("noukai_core")

CANCEL_CONCURRENCY = 32
"""How many jobs of a batch are cancelled at the same time."""


CLOSED = "the batch was closed"


def check_inputs(inputs: object) -> None:
    """Refuse what is one input and not many."""
    name = type(inputs).__name__
    many = isinstance(inputs, Iterable | AsyncIterable)
    if isinstance(inputs, str | bytes) or has_keys(inputs) or not many:
        raise refused(
            f"inputs is a {name}, but must be a list, or anything else to iterate over, "
            "with one input per job"
        )


class BatchHandle:
    """The state of a batch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    @property
    def flow(self) -> str:
        """The flow as `org/project/slug`."""
        return str(self._batch.flow)

    @property
    def counts(self) -> Counter[str]:
        """How many inputs ended in each `OutcomeState`, and how many are `running` or being submitted."""
        counts = Counter({state.value: count for state, count in self._batch.counts.items()})
        if running := len(self._batch.states()):
            counts["running"] = running
        return counts

    @property
    def tokens(self) -> int:
        """The tokens of all jobs that have ended, as far as their traces tell."""
        return self._batch.tokens

    @property
    def cost_usd(self) -> Decimal:
        """What all jobs that have ended cost, as far as their traces tell."""
        return self._batch.cost_usd

    @property
    def jobs_without_cost(self) -> int:
        """How many jobs have ended whose cost is not known, because their traces do not tell it."""
        return self._batch.jobs_without_cost

    @property
    def stopped(self) -> str | None:
        """Why nothing more is submitted, if so."""
        return self._batch.stopped

    @property
    def unfinished(self) -> dict[int, LedgerEntry]:
        """The entries of what was submitted, or may have been, and was not seen to end."""
        return self._batch.unfinished

    @property
    def sessions(self) -> dict[str, int]:
        """The sessions of unfinished jobs, and how many each has."""
        return self._batch.sessions

    @property
    def states(self) -> dict[int, str]:
        """The last known state of each unfinished job, by the position of its input."""
        return self._batch.states()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.flow!r}, {dict(self.counts)})"

    def _log_left_running(self) -> None:
        if unfinished := self._batch.unfinished:
            possible = sum(entry.job_id is None for entry in unfinished.values())
            log.warning(
                "Noukai batch of %s: left running (%d jobs%s; a rerun with the same ledger attaches to them; "
                "sessions %s)",
                self.flow,
                len(unfinished) - possible,
                f", perhaps {possible} more" if possible else "",
                ", ".join(sorted({entry.session_id for entry in unfinished.values()})),
            )

    def _log_cancelled(self, outcome: CancelOutcome | None, reason: str) -> CancelOutcome | None:
        ended = outcome is not None and outcome.status is not None and outcome.status.finished
        if outcome is not None and not (outcome.cancelled or ended):
            outcome.log(reason, log)
        return outcome

    def _log_closed(self, cancelled: list[CancelOutcome]) -> None:
        """Log how many jobs the close of the batch has cancelled; each that it could not is named already."""
        count = sum(outcome.cancelled for outcome in cancelled)
        if count or not cancelled:
            log.info("Noukai batch of %s: cancelled (%s; %d jobs)", self.flow, CLOSED, count)
