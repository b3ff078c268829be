"""Every decision of a schedule, from a seed or from a list of the decisions that are not harmless."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Decision: TypeAlias = tuple[str, int]
"""A label, and which of the decisions with that label it is."""


class Choices:
    """Decides, and remembers what it decided.

    The first of the options is always the harmless one. So a schedule is known by the few decisions that are
    not harmless, and a shorter list of them is a simpler schedule.

    Args:
        seed: Where the decisions come from.
        replayed: The decisions of an earlier schedule, in the place of the seed; all others are harmless.

    Attributes:
        made: The decisions that are not harmless.
        described: What they mean, of a schedule that is replayed.
        jitter: What the client draws its jitter from.
    """

    def __init__(self, seed: int, replayed: Mapping[Decision, int] | None = None) -> None:
        self._random = random.Random(seed)
        self._replayed = replayed
        self._counts: dict[str, int] = {}
        self.made: dict[Decision, int] = {}
        self.described: dict[Decision, str] = {}
        self.jitter = random.Random(seed)

    def pick(self, label: str, options: Sequence[T], harm: float = 1.0) -> T:
        """Return one of the options.

        Args:
            label: What is decided.
            options: The harmless one first.
            harm: How probable it is that the others have a chance at all.
        """
        chosen = self.index(label, len(options), harm)
        if chosen and self._replayed is not None:
            self.described[label, self._counts[label] - 1] = f"{label}: {options[chosen]}"
        return options[chosen]

    def index(self, label: str, count: int, harm: float = 1.0) -> int:
        """Return the number of one of so many options; 0 is the harmless one."""
        number = self._counts.get(label, 0)
        self._counts[label] = number + 1
        if self._replayed is not None:
            chosen = min(self._replayed.get((label, number), 0), count - 1)
        elif harm < 1.0 and self._random.random() >= harm:
            return 0
        else:
            chosen = int(self._random.random() * count)
        if chosen:
            self.made[label, number] = chosen
        return chosen

    def happens(self, label: str, harm: float) -> bool:
        """Tell whether something bad happens."""
        number = self._counts.get(label, 0)
        self._counts[label] = number + 1
        if self._replayed is not None:
            happens = (label, number) in self._replayed
        else:
            happens = self._random.random() < harm
        if happens:
            self.made[label, number] = 1
        return happens
