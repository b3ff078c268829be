"""Runs schedules by the million: `python -m tests.simulation --schedules 1000000`."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time

from tests.simulation import mutants


def main() -> int:
    """Run what the command line asks for, and return whether an invariant was violated."""
    options = _options()
    if options.mutant is not None:
        mutants.put_in(options.mutant)
    # Not before: a mutant changes what is imported here.
    from tests.simulation.explore import Outcome, explore, virtual_time
    from tests.simulation.shrink import shortest, told

    if options.until_found:
        return _search(options.seed, options.schedules)
    print(f"seed {options.seed}: {options.schedules} schedules in {options.processes} processes", flush=True)
    started = shown = time.monotonic()
    done = 0
    reached: set[object] = set()
    growth: list[tuple[int, int]] = []
    violated: dict[str, Outcome] = {}
    for chunk in explore(options.seed, options.schedules, options.processes):
        done += chunk.schedules
        reached |= chunk.states
        growth.append((done, len(reached)))
        violated = chunk.violated | violated
        if time.monotonic() - shown >= options.report_every or done == options.schedules:
            shown = time.monotonic()
            rate = done / (shown - started)
            print(
                f"{done} schedules, {rate:.0f}/s, {len(reached)} states, {len(violated)} violated", flush=True
            )
    print(_plateau(growth))
    with virtual_time():
        for invariant, outcome in violated.items():
            print(f"\n{told(shortest(outcome, invariant))}")
    return 1 if violated else 0


def _search(seed: int, schedules: int) -> int:
    """Run schedules until one violates an invariant, and print which."""
    from tests.simulation.explore import run, virtual_time

    with virtual_time():
        for number in range(seed, seed + schedules):
            if violations := run(number).violations:
                print(f"found by schedule {number}: {violations[0].invariant}: {violations[0].what}")
                return 1
    print(f"not found by {schedules} schedules")
    return 0


def _plateau(growth: list[tuple[int, int]]) -> str:
    """Say whether more schedules would reach states that none has reached yet."""
    schedules, states = growth[-1]
    before = max((count for done, count in growth if done <= schedules * 0.9), default=0)
    late = (states - before) / states
    verdict = "a plateau" if late < 0.001 else "no plateau yet"
    return f"{states} states reached, {late:.2%} of them in the last tenth of the schedules: {verdict}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report-every", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--mutant", help="put a mutant of the core in")
    parser.add_argument("--until-found", action="store_true", help="stop at the first violation")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
