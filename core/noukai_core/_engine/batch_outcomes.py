"""In which order the outcomes of a batch are passed on."""

from __future__ import annotations

from collections import deque

from noukai_core.batch import JobOutcome


class OutcomeQueue:
    """The outcomes that the driver has not passed on yet.

    Args:
        in_order: Whether they come in the order of the inputs, and not as they end.

    Attributes:
        ready: Those that may be passed on.
    """

    def __init__(self, *, in_order: bool) -> None:
        self.ready: deque[JobOutcome] = deque()
        self._in_order = in_order
        self._held: dict[int, JobOutcome | None] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self.ready) + len(self._held)

    def put(self, index: int, outcome: JobOutcome | None) -> None:
        """Add what came of an input; `None` if its outcome is not passed on."""
        if not self._in_order:
            if outcome is not None:
                self.ready.append(outcome)
            return
        self._held[index] = outcome
        while self._next in self._held:
            following = self._held.pop(self._next)
            self._next += 1
            if following is not None:
                self.ready.append(following)
