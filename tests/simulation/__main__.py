"""Runs schedules by the million: `python -m tests.simulation --part engine --schedules 1000000`."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time

from tests.simulation import mutants, parts, teeth


def main() -> int:
    """Run what the command line asks for, and return whether an invariant was violated."""
    options = _options()
    if options.mutants:
        return _try_mutants(options)
    if options.mutant is not None:
        mutants.put_in(options.part, options.mutant)
    return _explore(options)


def _explore(options: argparse.Namespace) -> int:
    # Not before: a mutant changes what is imported here.
    from tests.simulation.coverage import Growth
    from tests.simulation.explore import Outcome, explore
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
    for chunk in explore(part.name, options.seed, options.schedules, options.processes, options.mutant):
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


def _try_mutants(options: argparse.Namespace) -> int:
    """Look for every mutant of a part, and print what found it."""
    missed = 0
    found = teeth.findings(options.part, options.seed, options.schedules, options.processes, options.mutant)
    for mutant, finding in found:
        print(
            f"{'found' if finding else 'NOT FOUND'}: {mutant}{f' ({finding})' if finding else ''}", flush=True
        )
        missed += finding is None
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--part", choices=parts.NAMES, default="engine")
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report-every", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--mutant", help="put a mutant into the code, or look for no other")
    parser.add_argument("--mutants", action="store_true", help="look for every mutant of the part instead")
    options = parser.parse_args()
    if options.mutant is not None and options.mutant not in {
        one.name for one in mutants.of_part(options.part)
    }:
        parser.error(f"there is no mutant {options.mutant!r} of {options.part}")
    return options


if __name__ == "__main__":
    sys.exit(main())
