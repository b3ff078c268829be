"""How soon does a deferrable task succeed after its job has ended, and does it ever fail nevertheless?

    .venv/airflow/bin/python benchmarks/deferral.py                  # the lag, for jobs of 1 to 60 s
    .venv/airflow/bin/python benchmarks/deferral.py --crowd 120      # 120 tasks, each in a run of its own
    .venv/airflow/bin/python benchmarks/deferral.py --crowd 120 --busy 2

Default settings throughout, on a live Airflow (scheduler, triggerer, API server, DAG processor; SQLite) of
each version that has an environment, beside a local Noukai. `first` is a task without an earlier run,
`learned` the median of those that follow. The lag is the time from the end of the job, by the local Noukai,
to the end of the task, by Airflow. `--busy` keeps that many processor cores busy meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from devtools.airflow_server import LocalAirflow
from noukai_core.emulator import Emulator

CHECKOUT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ("airflow-floor", "airflow", "airflow-next")
KEY = "nk_test_benchmrk_0123456789abcdef0123456789abcdef"
SECONDS = (1, 2, 4, 6, 8, 10, 12, 15, 20, 30, 40, 60)
CROWD_SECONDS = range(3, 16)


def main() -> None:
    """Print the lags, or how many tasks of a crowd failed, of every version."""
    options = _options()
    found = {}
    for name in options.environments:
        binaries = CHECKOUT / ".venv" / name / "bin"
        if not (binaries / "airflow").exists():
            print(f"{name}: left out, there is no .venv/{name}", flush=True)
            continue
        with _busy(options.busy), _airflow(binaries) as (airflow, emulator):
            if options.crowd:
                _crowd(name, airflow, emulator, options.crowd)
            else:
                found[_version(binaries)] = _lags(airflow, emulator, options.rounds)
    if found:
        _print_table(found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4, help="runs of each duration")
    parser.add_argument(
        "--crowd", type=int, default=0, help="so many tasks at once instead, with jobs of 3 to 15 s"
    )
    parser.add_argument(
        "--busy", type=int, default=0, help="processes that do nothing but use a processor core"
    )
    parser.add_argument("--environments", nargs="+", default=ENVIRONMENTS, choices=ENVIRONMENTS)
    return parser.parse_args()


@contextmanager
def _airflow(binaries: Path) -> Iterator[tuple[LocalAirflow, Emulator]]:
    scripts = {
        f"lasts-{seconds}": {"after_seconds": float(seconds)} for seconds in {*SECONDS, *CROWD_SECONDS}
    }
    with Emulator(scripts) as emulator, tempfile.TemporaryDirectory() as folder:
        connection = {"conn_type": "noukai", "password": KEY, "host": emulator.base_url}
        environment = {"AIRFLOW_CONN_NOUKAI_DEFAULT": json.dumps(connection)}
        dags = [CHECKOUT / "benchmarks/dags"]
        with LocalAirflow(binaries, Path(folder), dags, environment=environment, parallelism=32) as airflow:
            yield airflow, emulator


def _lags(airflow: LocalAirflow, emulator: Emulator, rounds: int) -> dict[int, list[float]]:
    """Run a job of every duration in each round, one after the other begun, and return their lags."""
    lags: dict[int, list[float]] = {seconds: [] for seconds in SECONDS}
    for _ in range(rounds):
        runs = {}
        for seconds in SECONDS:
            runs[seconds] = _start(airflow, f"lasts_{seconds}")
            time.sleep(3)  # so that what is measured is not the start of the others
        for seconds, run in runs.items():
            lags[seconds].append(_lag(airflow, emulator, f"lasts_{seconds}", run))
    return lags


def _lag(airflow: LocalAirflow, emulator: Emulator, dag_id: str, run_id: str) -> float:
    state = airflow.wait_for(dag_id, run_id, "job", timeout=300)
    assert state == "success", f"{dag_id} {run_id} is {state}"
    task = airflow.task(dag_id, run_id, "job")
    (job,) = [job for job in emulator.control.jobs() if job["message"] == run_id]
    return _moment(task["end_date"]) - _moment(job["completed_at"])


def _crowd(name: str, airflow: LocalAirflow, emulator: Emulator, size: int) -> None:
    """Run many tasks at once, and print how many failed although their job completed."""
    flows = [f"lasts-{CROWD_SECONDS[number % len(CROWD_SECONDS)]}" for number in range(size)]
    runs = [_start(airflow, "crowd", {"flow": flow}) for flow in flows]
    states = [airflow.wait_for("crowd", run, "job", timeout=1200) for run in runs]
    jobs = {job["message"]: job["state"] for job in emulator.control.jobs()}
    lost = [
        run
        for run, state in zip(runs, states, strict=True)
        if state != "success" and jobs[run] == "completed"
    ]
    deferred = sum("trigger" in airflow.logs("crowd", run, "job") for run in runs)
    print(
        f"{name}: {size} tasks, {deferred} of them deferred, {len(lost)} failed although their job completed",
        flush=True,
    )
    for run in lost:
        print(f"  {run}", flush=True)


def _start(airflow: LocalAirflow, dag_id: str, conf: dict[str, Any] | None = None) -> str:
    return airflow.trigger(dag_id, conf, logical_date=datetime.now(UTC))


@contextmanager
def _busy(processes: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def _version(binaries: Path) -> str:
    done = subprocess.run(
        [
            binaries / "python",
            "-c",
            "from importlib.metadata import version; print(version('apache-airflow'))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def _print_table(found: dict[str, dict[int, list[float]]]) -> None:
    print("seconds from the end of a job to the end of its task, first / learned")
    print("| job of | " + " | ".join(found) + " |")
    print("|---|" + "---|" * len(found))
    for seconds in SECONDS:
        cells = [f"{lags[seconds][0]:.1f} / {median(lags[seconds][1:]):.1f}" for lags in found.values()]
        print(f"| {seconds} s | " + " | ".join(cells) + " |", flush=True)


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    main()
