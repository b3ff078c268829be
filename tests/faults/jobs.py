"""The jobs of a run: what each does is drawn by the seed."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from tests.faults import scale

FLOW = "acme/faults/run"

_OUTCOMES = ("completed",) * 34 + ("failed",) * 3 + ("cancelled",) * 2


class Plan(NamedTuple):
    """One job as it is wanted.

    Attributes:
        message: Its input, which no other has, since the faults are drawn by it.
        outcome: How it ends; `never` for one whose waiter gives up and cancels it.
        after_seconds: When.
    """

    message: str
    outcome: str
    after_seconds: float

    @property
    def parameters(self) -> dict[str, Any]:
        """Tell the local Noukai."""
        return {"_emulator": {"outcome": self.outcome, "after_seconds": self.after_seconds}}


def plans(number: int, *, with_endless: bool = False) -> list[Plan]:
    """Draw so many jobs.

    Args:
        number: How many.
        with_endless: Whether some of them never end.
    """
    outcomes = (*_OUTCOMES, "never") if with_endless else _OUTCOMES
    draw = Random(scale.SEED)
    return [
        Plan(f"job {index}", draw.choice(outcomes), round(draw.uniform(0, 3), 2)) for index in range(number)
    ]
