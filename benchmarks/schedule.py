"""How soon is the end of a job seen, and with how many polls? The real schedule against fixed intervals.

    .venv/prefect/bin/python benchmarks/schedule.py

The picture of the documentation, which matplotlib draws:

    make .venv/prefect-peers/ready
    .venv/prefect-peers/bin/python benchmarks/schedule.py --picture docs/schedule.svg

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
POINTS, JOBS_PER_POINT = 60, 40

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
        draw(arguments.picture)
        print(f"\n{arguments.picture}")


def draw(path: Path) -> None:
    """Draw lag and polls over the duration, both axes logarithmic."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "schedule"}
    spread = [SHORTEST * (LONGEST / SHORTEST) ** (place / (POINTS - 1)) for place in range(POINTS)]
    figure, (lag_axes, poll_axes) = pyplot.subplots(ncols=2, figsize=(10, 4), layout="constrained")
    for candidate in SCHEDULES:
        dice = random.Random(SEED)
        seen = [
            [follow(candidate, duration * dice.uniform(0.97, 1.03), dice) for _ in range(JOBS_PER_POINT)]
            for duration in spread
        ]
        lags = [mean(lag for lag, _ in jobs) / duration for jobs, duration in zip(seen, spread, strict=True)]
        lag_axes.plot(spread, lags, label=candidate.name)
        poll_axes.plot(spread, [mean(polls for _, polls in jobs) for jobs in seen])
    lag_axes.set_title("lag as a share of the job's duration")
    poll_axes.set_title("polls of one job")
    for axes in (lag_axes, poll_axes):
        axes.set(xscale="log", yscale="log", xlabel="duration of the job")
        axes.set_xticks([2, 60, 600, 7200], ["2 s", "1 min", "10 min", "2 h"])
        axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=len(SCHEDULES))
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
