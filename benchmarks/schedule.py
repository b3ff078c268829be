"""How soon is the end of a job seen, and with how many polls? The real schedule against fixed intervals.

    .venv/prefect/bin/python benchmarks/schedule.py [--picture docs/schedule.svg]

Simulated: jobs whose durations are log-uniform from 2 s to 2 h, every schedule on the same jobs. A poll takes
no time here. `lag` is the time from a job's end to the poll that sees it, as a share of the job's duration;
`polls` are those of one job, on average, and as a share of polling every 2 s.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from noukai_core._engine import schedule

SHORTEST, LONGEST = 2.0, 7200.0
JOBS = 4000
SEED = 20

Pause = Callable[[float, float], float]


@dataclass(frozen=True)
class Schedule:
    """A way to decide when to poll next."""

    name: str
    pause: Pause


def fixed(seconds: float) -> Schedule:
    """Poll at fixed intervals."""
    return Schedule(f"every {seconds:g} s", lambda age, jitter: seconds)


SCHEDULES = [
    Schedule("adaptive", lambda age, jitter: schedule.pause_before_poll(age, jitter=jitter)),
    *(fixed(seconds) for seconds in (2.0, 10.0, 30.0, 60.0)),
]


def follow(schedule: Schedule, duration: float, dice: random.Random) -> tuple[float, int]:
    """Wait for one job; return the lag and the number of polls."""
    now, polls = 0.0, 1
    while now < duration:
        now += schedule.pause(now, dice.random())
        polls += 1
    return now - duration, polls


def durations(count: int, dice: random.Random) -> list[float]:
    """Return durations that are spread evenly over the orders of magnitude."""
    return [math.exp(dice.uniform(math.log(SHORTEST), math.log(LONGEST))) for _ in range(count)]


def main() -> None:
    """Print the table, and draw the picture on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--picture", type=Path, help="write an SVG with the curves")
    arguments = parser.parse_args()
    jobs = durations(JOBS, random.Random(SEED))
    results = {}
    for candidate in SCHEDULES:
        dice = random.Random(SEED)
        results[candidate.name] = [(duration, *follow(candidate, duration, dice)) for duration in jobs]
    every_two = mean(polls for _, _, polls in results["every 2 s"])
    print(f"{JOBS} jobs, durations log-uniform from {SHORTEST:g} s to {LONGEST:g} s\n")
    print(f"{'schedule':12} {'mean lag':>10} {'worst lag':>10} {'polls':>8} {'of every 2 s':>13}")
    for name, jobs_seen in results.items():
        lags = [lag / duration for duration, lag, _ in jobs_seen]
        polls = mean(polls for _, _, polls in jobs_seen)
        print(f"{name:12} {mean(lags):>10.1%} {max(lags):>10.1%} {polls:>8.1f} {polls / every_two:>13.1%}")
    if arguments.picture:
        arguments.picture.parent.mkdir(parents=True, exist_ok=True)
        arguments.picture.write_text(picture())
        print(f"\n{arguments.picture}")


def picture() -> str:
    """Draw lag and polls over the duration, both axes logarithmic, as an SVG."""
    points = 60
    spread = [SHORTEST * (LONGEST / SHORTEST) ** (place / (points - 1)) for place in range(points)]
    panels = [("lag as a share of the job's duration", 1e-4, 20.0, 0), ("polls of one job", 1.0, 5000.0, 1)]
    colours = ["#6d28d9", "#0891b2", "#65a30d", "#d97706", "#dc2626"]
    head = (
        'xmlns="http://www.w3.org/2000/svg" width="900" height="360" font-family="sans-serif" font-size="12"'
    )
    parts = [f"<svg {head}>", '<rect width="900" height="360" fill="white"/>']
    for panel, (title, low, high, measure) in enumerate(panels):
        left = 60 + panel * 440
        parts.append(f'<text x="{left}" y="20" font-weight="bold">{title}</text>')
        parts.append(f'<rect x="{left}" y="30" width="360" height="270" fill="none" stroke="#999"/>')
        for exponent in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
            y = 300 - 270 * (exponent - math.log10(low)) / math.log10(high / low)
            label = f"{10.0**exponent:g}"
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        for seconds, label in ((2, "2 s"), (60, "1 min"), (600, "10 min"), (7200, "2 h")):
            x = left + 360 * math.log(seconds / SHORTEST) / math.log(LONGEST / SHORTEST)
            parts.append(f'<text x="{x:.1f}" y="318" text-anchor="middle">{label}</text>')
        for candidate, colour in zip(SCHEDULES, colours, strict=True):
            dice = random.Random(SEED)
            line = []
            for duration in spread:
                seen = [follow(candidate, duration * dice.uniform(0.97, 1.03), dice) for _ in range(40)]
                value = mean(lag / duration for lag, _ in seen) if measure == 0 else mean(n for _, n in seen)
                share = (math.log10(min(max(value, low), high)) - math.log10(low)) / math.log10(high / low)
                x = left + 360 * math.log(duration / SHORTEST) / math.log(LONGEST / SHORTEST)
                line.append(f"{x:.1f},{300 - 270 * share:.1f}")
            parts.append(
                f'<polyline points="{" ".join(line)}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
    for place, (candidate, colour) in enumerate(zip(SCHEDULES, colours, strict=True)):
        parts.append(f'<text x="{60 + place * 130}" y="348" fill="{colour}">■ {candidate.name}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
