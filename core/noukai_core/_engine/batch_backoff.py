"""How a batch submits while the outcomes of its submissions are unknown: one by one, ever more slowly.

An input whose submission has an unknown outcome leaves its lane to others. Without a pause, an outage would
use up all inputs within seconds, with one request for each.
"""

from __future__ import annotations

from noukai_core._engine import schedule
from noukai_core._engine.batch_log import EachJobLog
from noukai_core._engine.effects import Clock, Effects, Sleep, Wake
from noukai_core._validation import FlowPath


class SubmissionBackoff:
    """The pauses between the submissions of all lanes of one batch.

    Args:
        flow: The flow.
        clock: Seconds, from any beginning.
        log: Where an outage is reported.
    """

    def __init__(self, flow: FlowPath, clock: Clock, log: EachJobLog) -> None:
        self._flow = flow
        self._clock = clock
        self._log = log
        self._submissions = 0
        self._next = 0.0
        self._ended = Wake()

    def begin(self) -> None:
        """Take note of an unknown outcome."""
        if not self._submissions:
            self._log.warning(
                "Noukai batch of %s: submitting one by one (the outcome of a submission is unknown)",
                self._flow,
            )
            self._back_off()

    def end(self) -> None:
        """Take note that the service responds, or that nothing more is submitted."""
        self._submissions = 0
        self._ended.ring()

    def wait(self) -> Effects[None]:
        """Wait for the turn of a submission."""
        while self._submissions and (left := self._next - self._clock()) > 0:
            yield Sleep(left, self._ended)
        if self._submissions:
            self._back_off()

    def _back_off(self) -> None:
        self._submissions += 1
        self._next = self._clock() + schedule.backoff(self._submissions)
