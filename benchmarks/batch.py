"""Many jobs with `flow.jobs` and in a Prefect task, beside polling each with the same rate limit, and a loop.

    .venv/prefect/bin/python benchmarks/batch.py [--jobs 5000] [--shortest 60] [--longest 120]

The local Noukai runs in a process of its own, and each shape in another, of which the processor time (without
the imports) and the largest memory are measured; that of the Prefect task includes Prefect. The durations of
the jobs are even between the two. `end` is when the last outcome was there, as a multiple of the longest job;
`requests` leaves the submissions out. `share` compares them with polling each job as promptly as a single job
is polled, which no rate limit of 50 a second would allow.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from local_services import local_noukai

from noukai_core import AsyncNoukai
from noukai_core._engine import lanes, schedule
from noukai_core.emulator import EmulatorControl

FLOW = "acme/spelling/grade-3"


def inputs(jobs: int, shortest: float, longest: float) -> Iterator[dict[str, Any]]:
    """Yield the inputs, whose jobs take a while each."""
    for number in range(jobs):
        seconds = shortest + (longest - shortest) * (number * 7919 % jobs) / jobs
        yield {"message": "x" * 200, "parameters": {"_emulator": {"after_seconds": seconds}}}


async def by_session(client: AsyncNoukai, given: Iterator[dict[str, Any]], jobs: int) -> int:
    """Run the jobs with `flow.jobs`."""
    flow = client.flow(FLOW)
    return len([one.index async for one in flow.jobs(given, max_concurrency=jobs) if one.error is None])


async def each(client: AsyncNoukai, given: Iterator[dict[str, Any]], jobs: int) -> int:
    """Do the same, but let no list stand for a poll."""
    lanes.FEW_JOBS = lanes.MAX_JOBS
    return await by_session(client, given, jobs)


async def bare(client: AsyncNoukai, given: Iterator[dict[str, Any]], jobs: int) -> int:
    """Submit all, then wait for all, as a user would write it."""
    flow = client.flow(FLOW)

    async def one(arguments: dict[str, Any]) -> None:
        await (await flow.job(**arguments)).wait()

    await asyncio.gather(*map(one, given))
    return jobs


async def prefect_task(base_url: str, given: Iterator[dict[str, Any]], jobs: int) -> int:
    """Run the jobs with `run_noukai_jobs`, in a flow run."""
    from prefect import flow
    from pydantic import SecretStr

    from noukai_prefect import NoukaiCredentials, arun_noukai_jobs

    credentials = NoukaiCredentials(api_key=SecretStr("nk_test_key"), base_url=base_url)

    @flow
    async def batch() -> int:
        outcomes = await arun_noukai_jobs(credentials, FLOW, given, max_concurrency=jobs, raise_on="none")
        return len([one.index for one in outcomes if one.error is None])

    return await batch()


def polls_alone(seconds: float) -> int:
    """Return how often a single job that takes so long is polled."""
    age, polls = 0.0, 1
    while age < seconds:
        age += schedule.pause_before_poll(age, None)
        polls += 1
    return polls


SHAPES: dict[str, tuple[str, Callable[[AsyncNoukai, Iterator[dict[str, Any]], int], Awaitable[int]]]] = {
    "by_session": ("flow.jobs, sessions polled", by_session),
    "each": ("flow.jobs, each job polled", each),
    "bare": ("gather of job() and wait()", bare),
}
PREFECT = "prefect"
NAMES = {PREFECT: "run_noukai_jobs of Prefect", **{name: said for name, (said, _) in SHAPES.items()}}


async def run(shape: str, base_url: str, jobs: int, shortest: float, longest: float) -> None:
    """Run one shape, and print what it took."""
    cpu, started = time.process_time(), time.monotonic()
    given = inputs(jobs, shortest, longest)
    if shape == PREFECT:
        completed = await prefect_task(base_url, given, jobs)
    else:
        async with AsyncNoukai("nk_test_key", base_url=base_url) as client:
            completed = await SHAPES[shape][1](client, given, jobs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    took = time.monotonic() - started
    print(json.dumps({"completed": completed, "wall": took, "cpu": time.process_time() - cpu, "peak": peak}))


def measure(shape: str, given: argparse.Namespace) -> None:
    """Run one shape next to a fresh local Noukai, and print its line."""
    with ExitStack() as stack:
        environment = None
        if shape == PREFECT:
            from devtools.prefect_server import LocalPrefect

            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            environment = stack.enter_context(LocalPrefect(Path(sys.executable).parent, home)).environment
        measure_beside(shape, given, environment)


def measure_beside(shape: str, given: argparse.Namespace, environment: dict[str, str] | None) -> None:
    """Run one shape in an environment."""
    with local_noukai() as base_url:
        command = [sys.executable, __file__, "--run", shape, "--base-url", base_url]
        numbers = ["--jobs", given.jobs, "--shortest", given.shortest, "--longest", given.longest]
        done = subprocess.run(
            [*command, *map(str, numbers)], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{shape} failed:\n{done.stderr[-4000:]}")
        seen = json.loads(done.stdout.splitlines()[-1])
        counts = EmulatorControl(base_url).counts()
    assert counts["submit"] == seen["completed"] == given.jobs, (counts, seen)
    requests = sum(counts.values()) - counts["submit"]
    alone = sum(
        polls_alone(one["parameters"]["_emulator"]["after_seconds"])
        for one in inputs(given.jobs, given.shortest, given.longest)
    )
    print(
        f"{NAMES[shape]:30} {given.jobs:6} {seen['wall'] / given.longest:6.2f}x {seen['cpu']:7.1f} "
        f"{seen['peak']:6.0f} {requests:9} {counts['session']:9} {requests / given.jobs:8.2f} "
        f"{f'1/{alone / requests:.1f}':>7}",
        flush=True,
    )


def main() -> None:
    """Print a table of all shapes, measured in one run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--shortest", type=float, default=60.0, help="seconds of the shortest job")
    parser.add_argument("--longest", type=float, default=120.0, help="seconds of the longest job")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--run", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--base-url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        asyncio.run(run(given.run, given.base_url, given.jobs, given.shortest, given.longest))
        return
    columns = f"{'end':>7} {'CPU s':>7} {'MB':>6} {'requests':>9} {'sessions':>9} {'per job':>8} {'share':>7}"
    print(f"{'':30} {'jobs':>6} {columns}")
    for shape in given.only:
        measure(shape, given)


if __name__ == "__main__":
    main()
