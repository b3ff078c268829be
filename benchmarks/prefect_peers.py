"""One job, waited for by `run_noukai_job` and by the waiting loops of the comparable Prefect integrations.

    make .venv/prefect-peers/ready
    .venv/prefect-peers/bin/python benchmarks/prefect_peers.py [--seconds 30 35] [--rounds 3]

The peers are `DbtCloudJobRun.wait_for_completion` of prefect-dbt and `jobs_runs_wait_for_completion` of
prefect-databricks, each with its defaults. All loops run in one environment, each in a separate flow and
process, against one local server and one Prefect server. The rounds of a loop run side by side, as they do
nothing but wait; the loops run one after the other. The table has the medians.

- `requests`: those that reached the server. Ours are one submission and the polls; the peers only poll.
- `lag`: from the job's end until the call returned, in seconds.
- `CPU`: seconds, of the whole process without its imports. The flow that only sleeps shows Prefect's part.

A duration of 30 s is a multiple of the peers' interval of 10 s, and so the best case of a fixed interval;
35 s is the middle between two polls.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from local_services import local_services

from devtools.prefect_server import LocalPrefect

BINARIES = Path(sys.executable).parent
LOOPS = Path(__file__).with_name("prefect_peer_loops.py")

OURS = "noukai"
CALLS = {
    "sleep": "a flow that only sleeps",
    OURS: "run_noukai_job",
    "dbt": "prefect-dbt, DbtCloudJobRun.wait_for_completion",
    "databricks": "prefect-databricks, jobs_runs_wait_for_completion",
}


@dataclass(frozen=True)
class Seen:
    """What one loop took to wait for one job."""

    requests: float
    lag: float
    cpu: float


def main() -> None:
    """Print one table of all loops and durations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0, 35.0], help="the job's durations")
    parser.add_argument("--rounds", type=int, default=3, help="how often each loop waits for a job")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as home,
        LocalPrefect(BINARIES, Path(home, "prefect")) as prefect,
        local_services(Path(home)) as (address, certificates),
    ):
        print(f"{'':49} {'job':>5} {'requests':>9} {'lag':>6} {'CPU':>6} {'beside ours':>24}")
        for seconds in given.seconds:
            seen: dict[str, Seen] = {}
            for name in CALLS:
                seen[name] = measure(name, seconds, given.rounds, prefect, address, certificates)
                print_line(name, seconds, seen)


def measure(
    name: str, seconds: float, rounds: int, prefect: LocalPrefect, address: str, certificates: str
) -> Seen:
    """Let one loop wait for one job, so often, and return the medians."""
    # Prefect has its defaults, without the other settings of LocalPrefect: with results persisted, the polls
    # of prefect-databricks would be cached, and the end never seen.
    settings = {key: value for key, value in prefect.environment.items() if not key.startswith("PREFECT_")}
    kept = {key: prefect.environment[key] for key in ("PREFECT_API_URL", "PREFECT_HOME")}

    def wait_once(_: int) -> Seen:
        done = subprocess.run(
            [BINARIES / "python", LOOPS, name, str(seconds), address],
            env=settings | kept | {"SSL_CERT_FILE": str(certificates)},
            capture_output=True,
            text=True,
            timeout=seconds + 180,
        )
        if done.returncode != 0:
            raise SystemExit(f"{CALLS[name]} failed:\n{done.stderr[-4000:]}")
        return Seen(**json.loads(done.stdout.splitlines()[-1]))

    with ThreadPoolExecutor(rounds) as side_by_side:
        seen = list(side_by_side.map(wait_once, range(rounds)))
    return Seen(*(median(getattr(one, field.name) for one in seen) for field in fields(Seen)))


def print_line(name: str, seconds: float, seen: dict[str, Seen]) -> None:
    found = seen[name]
    line = f"{CALLS[name]:49} {seconds:4g}s "
    if name == "sleep":
        line += f"{'':9} {'':6} {found.cpu:6.2f}"
    else:
        ours = seen[OURS]
        ratios = (found.requests / ours.requests, found.lag / ours.lag, found.cpu / ours.cpu)
        line += f"{found.requests:9.0f} {found.lag:6.2f} {found.cpu:6.2f} "
        line += "".join(f"{ratio:7.2f}x" for ratio in ratios)
    print(line, flush=True)


if __name__ == "__main__":
    main()
