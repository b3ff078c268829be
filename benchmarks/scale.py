"""How many jobs can one triggerer wait for? Computed from what `triggerer.py` has measured.

Measured are the processor time of a poll, of a trigger that only waits, and of the supervisor, and the memory
of a trigger. Computed is the rest, for jobs whose durations are log-uniform from 2 s to 2 h, under the bounds
that are set here: half of a core for the runner, half for the supervisor, and 4 GB.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from statistics import mean

from schedule import JOBS, SCHEDULES, SEED, durations, follow

CORE, MEMORY_MB = 0.5, 4000.0
DEFAULT_POLLS = 50.0
DEFAULT_CAPACITY = 1000
MANY = 100_000


@dataclass(frozen=True)
class UnitCosts:
    """What was measured: seconds of a processor, and MB.

    Attributes:
        poll: One poll.
        waiting: A trigger that waits, in a second.
        supervised: The same in the supervisor.
        memory: A trigger.
    """

    poll: float
    waiting: float
    supervised: float
    memory: float


def max_polls_per_second() -> float:
    """Return how often a waiting job is polled, on average over all the time that jobs wait."""
    dice = random.Random(SEED)
    jobs = durations(JOBS, dice)
    return mean(follow(SCHEDULES[0], duration, dice)[1] for duration in jobs) / mean(jobs)


def on_paper(costs: UnitCosts) -> str:
    """Print what one triggerer supports, what limits it first, and what a hundred thousand jobs need."""
    rate = max_polls_per_second()
    carried = {
        "half a core of the runner": CORE / (costs.waiting + costs.poll * rate),
        "half a core of the supervisor": CORE / costs.supervised,
        f"{MEMORY_MB / 1000:g} GB": MEMORY_MB / costs.memory,
    }
    first = min(carried, key=lambda limit: carried[limit])
    lines = [
        f"measured: a poll {costs.poll * 1e6:.0f} µs, a waiting trigger {costs.waiting * 1e6:.0f} µs/s "
        f"(supervisor {costs.supervised * 1e6:.0f} µs/s) and {costs.memory * 1000:.0f} kB",
        f"computed: a waiting job is looked at {rate:.3f} times a second",
        *(f"computed: {limit} is enough for {jobs:,.0f} waiting jobs" for limit, jobs in carried.items()),
        f"so {first} comes first: {MANY:,} waiting jobs take {MANY / carried[first]:.1f} triggerers, "
        f"{MANY * rate:,.0f} polls per second and {MANY * costs.memory / 1000:.1f} GB",
        f"as Airflow and the connection are set by default: {DEFAULT_CAPACITY:,} jobs a triggerer "
        f"([triggerer] capacity); the rate limit of {DEFAULT_POLLS:g} polls per second is enough for "
        f"{DEFAULT_POLLS / rate:,.0f} of them, beyond which the pauses stretch",
    ]
    return "\n".join(lines)
