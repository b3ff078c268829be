"""Runs schedules by the million: `python -m tests.simulation --part engine --schedules 1000000`."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time

from tests.simulation import mutants, parts
from tests.simulation.coverage import Growth


def main() -> int:
    """Run what the command line asks for, and return whether an invariant was violated."""
    options = _options()
    if options.mutant is not None:
        mutants.put_in(options.mutant)
    if options.until_found:
        return _search(options.part, options.seed, options.schedules)
    return _explore(options)


def _explore(options: argparse.Namespace) -> int:
    from tests.simulation.explore import Outcome, explore  # not before: a mutant changes what it imports
    from tests.simulation.shrink import shortest, told

    print(
        f"{options.part}: {options.schedules} schedules from seed {options.seed} "
        f"in {options.processes} processes",
        flush=True,
    )
    part = parts.part(options.part)
    growth = Growth()
    violated: dict[str, Outcome] = {}
    started = shown = time.monotonic()
    for chunk in explore(part.name, options.seed, options.schedules, options.processes):
        growth.add(chunk.schedules, chunk.states)
        for invariant, outcome in chunk.violated.items():
            print(f"seed {outcome.seed} violates {invariant}", flush=True)
            violated.setdefault(invariant, outcome)
        done = growth.schedules
        if time.monotonic() - shown >= options.report_every or done == options.schedules:
            shown = time.monotonic()
            print(
                f"{done} schedules, {done / (shown - started):.0f}/s, {len(growth.reached)} states, "
                f"{len(violated)} invariants violated; continue with seed {options.seed + done}",
                flush=True,
            )
    print(growth)
    with part.world():
        for invariant, outcome in violated.items():
            print(f"\n{told(shortest(outcome, invariant, part.run))}", flush=True)
    return 1 if violated else 0


def _search(name: str, seed: int, schedules: int) -> int:
    """Run schedules until one violates an invariant, and print which."""
    part = parts.part(name)
    with part.world():
        for number in range(seed, seed + schedules):
            if violations := part.run(number).violations:
                print(f"found by schedule {number}: {violations[0].invariant}: {violations[0].what}")
                return 1
    print(f"not found by {schedules} schedules")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--part", choices=parts.NAMES, default="engine")
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report-every", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--mutant", help="put a mutant of the code in")
    parser.add_argument("--until-found", action="store_true", help="stop at the first violation")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
