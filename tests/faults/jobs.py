"""The jobs of a run: what each does is drawn by the seed."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from tests.faults import scale

FLOW = "acme/faults/run"

_OUTCOMES = ("completed",) * 34 + ("failed",) * 3 + ("cancelled",) * 2


class Plan(NamedTuple):
    """One job to run.

    Attributes:
        message: Its input, which no other has, since the faults are drawn by it.
        outcome: How it ends; `never` for one whose waiter times out and cancels it.
        after_seconds: When.
        after_polls: The poll that ends it instead.
    """

    message: str
    outcome: str
    after_seconds: float
    after_polls: int | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """Set the job's script in the local Noukai."""
        by_polls = {"after_polls": self.after_polls}
        by_time = {"after_seconds": self.after_seconds}
        return {"_emulator": {"outcome": self.outcome, **(by_polls if self.after_polls else by_time)}}


def plans(number: int, *, with_endless: bool = False, most_polls: int | None = None) -> list[Plan]:
    """Draw so many jobs.

    Args:
        number: How many.
        with_endless: Whether some of them never end.
        most_polls: How many polls the longest of them take; by default they take up to three seconds.
    """
    outcomes = (*_OUTCOMES, "never") if with_endless else _OUTCOMES
    draw = Random(scale.SEED)
    return [
        Plan(
            f"job {index}",
            draw.choice(outcomes),
            round(draw.uniform(0, 3), 2),
            draw.randint(1, most_polls) if most_polls else None,
        )
        for index in range(number)
    ]
