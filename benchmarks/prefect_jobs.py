"""Many jobs through each way to call the Prefect tasks, beside a bare loop that makes the same requests.

    .venv/prefect/bin/python benchmarks/prefect_jobs.py [--seconds 60] [--jobs 1000]

The local Noukai and the Prefect server run in separate processes; each shape runs in another one, of which
the processor time (without the imports), the largest memory and the connections are measured. `end` is when
the last result was there, as a multiple of the duration of one job.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from devtools.prefect_server import LocalPrefect
from noukai_core.emulator import EmulatorControl

SHAPES = Path(__file__).with_name("prefect_shapes.py")


@dataclass(frozen=True)
class Shape:
    """One way to run jobs, and how many of them it is given."""

    name: str
    jobs: int
    said: str


def main() -> None:
    """Print a table of all shapes, measured in one run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="the duration of each job")
    parser.add_argument("--jobs", type=int, default=1000, help="how many jobs `run_noukai_jobs` runs")
    parser.add_argument("--only", nargs="*", help="the names of the shapes to measure")
    given = parser.parse_args()
    shapes = [
        Shape("bare", given.jobs, "a bare loop, one session, 100 polls per second"),
        Shape("batch", given.jobs, "run_noukai_jobs, 100 polls per second"),
        Shape("gather", given.jobs // 5, "gather of arun_noukai_job"),
        Shape("map", given.jobs // 5, "run_noukai_job.map"),
        Shape("map-async", given.jobs // 20, "arun_noukai_job.map"),
    ]
    print(f"{'':45} {'jobs':>5} {'end':>7} {'CPU s':>7} {'MB':>6} {'requests':>9} {'connections':>12}")
    with (
        tempfile.TemporaryDirectory() as home,
        LocalPrefect(Path(sys.executable).parent, Path(home)) as prefect,
    ):
        for shape in shapes:
            if not given.only or shape.name in given.only:
                measure(shape, given.seconds, prefect)


def measure(shape: Shape, seconds: float, prefect: LocalPrefect) -> None:
    """Run one shape next to a fresh local Noukai, and print its line."""
    emulator = subprocess.Popen(
        [sys.executable, "-m", "noukai_core.emulator", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert emulator.stdout is not None
        base_url = emulator.stdout.readline().split()[-1]
        control = EmulatorControl(base_url)
        control.script("*", after_seconds=seconds)
        done = subprocess.run(
            [sys.executable, str(SHAPES), shape.name, str(shape.jobs), base_url],
            env=prefect.environment,
            capture_output=True,
            text=True,
            timeout=seconds * 5 + 300,
        )
        if done.returncode != 0:
            raise SystemExit(f"{shape.name} failed:\n{done.stderr[-4000:]}")
        seen = json.loads(done.stdout.splitlines()[-1])
        counts = control.counts()
    finally:
        emulator.terminate()
        emulator.wait(10)
    assert counts["submit"] == shape.jobs, counts
    requests = sum(counts.values())
    print(
        f"{shape.said:45} {shape.jobs:5} {seen['wall'] / seconds:6.2f}x {seen['cpu']:7.1f} "
        f"{seen['megabytes']:6.0f} {requests:9} {seen['connections']:12}",
        flush=True,
    )


if __name__ == "__main__":
    main()
