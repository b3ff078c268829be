"""Finds the simplest schedule that violates an invariant, and tells its story."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tests.simulation.choices import Decision
from tests.simulation.explore import Outcome, run


def shortest(found: Outcome, invariant: str, run: Callable[..., Outcome] = run) -> Outcome:
    """Return the simplest schedule that still violates the invariant, with its story.

    A decision is taken back, or made less harmful, as long as the invariant is still violated.
    """
    decisions: Mapping[Decision, int] = found.decisions
    while (simpler := _simpler(found.seed, decisions, invariant, run)) is not None:
        decisions = simpler
    return run(found.seed, decisions, told=True)


def _simpler(
    seed: int, decisions: Mapping[Decision, int], invariant: str, run: Callable[..., Outcome]
) -> Mapping[Decision, int] | None:
    for candidate in _candidates(decisions):
        outcome = run(seed, candidate)
        if _size(outcome.decisions) < _size(decisions) and any(
            violation.invariant == invariant for violation in outcome.violations
        ):
            return outcome.decisions
    return None


def _candidates(decisions: Mapping[Decision, int]) -> Iterator[Mapping[Decision, int]]:
    items = list(decisions.items())
    length = len(items) // 2
    while length:
        for start in range(0, len(items), length):
            yield dict(items[:start] + items[start + length :])
        length //= 2
    for decision, chosen in items:
        for lower in {1, chosen // 2, chosen - 1} - {0, chosen}:
            yield {**decisions, decision: lower}


def _size(decisions: Mapping[Decision, int]) -> tuple[int, int]:
    return len(decisions), sum(decisions.values())


def shortest_story(found: Outcome, run: Callable[..., Outcome]) -> str:
    """Return the story of the simplest schedule that violates the same invariant."""
    return told(shortest(found, found.violations[0].invariant, run))


def told(outcome: Outcome) -> str:
    """Return the story of a schedule: what is unusual about it, what happened, and what is wrong."""
    unusual = [f"  {line}" for line in outcome.unusual]
    story = [f"  {line}" for line in outcome.story]
    wrong = [f"  {violation.invariant}: {violation.what}" for violation in outcome.violations]
    return "\n".join([f"seed {outcome.seed}", "unusual:", *unusual, "story:", *story, "violated:", *wrong])
