"""How soon does a deferrable task succeed after its job has ended, and does it ever fail nevertheless?

    .venv/airflow/bin/python benchmarks/deferral.py                    # the lag, for jobs of 1 to 60 s
    .venv/airflow/bin/python benchmarks/deferral.py --crowd            # 3 x 120 tasks in separate runs

Default settings throughout, on a live Airflow (scheduler, triggerer, API server, DAG processor; SQLite) of
each version that has an environment, beside a local Noukai.

The lag is the time from the end of the job, by the local Noukai, to the end of the task, by Airflow. `first`
is a task without an earlier run, `learned` the median of those that follow. `sleep` is a task that defers at
the same time, for as long, to a trigger that only sleeps: what Airflow itself needs from the event to the
end. Before Airflow 3.4, that may fail such a task if it sleeps for less than ten seconds.

`--busy` keeps processor cores busy while a crowd runs; `--at-once` lets its tasks defer without an inline
wait. The margin is the time from the scheduler's notice of the end of the worker's process to the event that
resumes the task. Before Airflow 3.4, a task whose margin is too short fails although its job completed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from devtools.airflow_server import LocalAirflow
from devtools.processes import ServerError
from noukai_core.emulator import Emulator

CHECKOUT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ("airflow-floor", "airflow", "airflow-next")
KEY = "nk_test_benchmrk_0123456789abcdef0123456789abcdef"
SECONDS = (1, 2, 4, 6, 8, 10, 12, 15, 20, 30, 40, 60)
CROWD_SECONDS = range(3, 16)
CROWD_LIMIT_SECONDS = 3600.0
WARM_UP_SECONDS, AFTERWARDS_SECONDS = 15, 10

_NOTICE = re.compile(
    r"(?P<moment>\d{4}-\S+Z).*executor event with state success.*?(?P<run>manual__[0-9a-f]+)"
)


def main() -> None:
    """Print the lags, or how many tasks of a crowd failed, of every version."""
    options = _options()
    found = {}
    for name in options.environments:
        binaries = CHECKOUT / ".venv" / name / "bin"
        if not (binaries / "airflow").exists():
            print(f"{name}: left out, there is no .venv/{name}", flush=True)
            continue
        version = _version(binaries)
        with _airflow(binaries, options) as (airflow, emulator):
            if options.crowd:
                _crowds(version, airflow, emulator, options)
            else:
                found[version] = _lags(airflow, emulator, options.rounds)
                _print_table({version: found[version]})
    if len(found) > 1:
        _print_table(found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3, help="runs of each duration, or crowds")
    parser.add_argument(
        "--crowd", type=int, nargs="?", const=120, default=0, help="tasks at once, with jobs of 3 to 15 s"
    )
    parser.add_argument("--busy", type=int, default=2, help="processes that only use a processor core")
    parser.add_argument("--at-once", action="store_true", help="defer the crowd without an inline wait")
    parser.add_argument("--environments", nargs="+", default=ENVIRONMENTS, choices=ENVIRONMENTS)
    return parser.parse_args()


@contextmanager
def _airflow(binaries: Path, options: argparse.Namespace) -> Iterator[tuple[LocalAirflow, Emulator]]:
    scripts = {
        f"lasts-{seconds}": {"after_seconds": float(seconds)} for seconds in {*SECONDS, *CROWD_SECONDS}
    }
    with Emulator(scripts) as emulator, tempfile.TemporaryDirectory() as folder:
        connection = {"conn_type": "noukai", "password": KEY, "host": emulator.base_url}
        environment = {
            "AIRFLOW_CONN_NOUKAI_DEFAULT": json.dumps(connection),
            "PYTHONPATH": str(CHECKOUT / "benchmarks"),
        }
        if options.at_once:
            environment["BENCHMARK_DEFERRED_AT_ONCE"] = "1"
        dags = [CHECKOUT / "benchmarks/dags"]
        with LocalAirflow(binaries, Path(folder), dags, environment=environment, parallelism=32) as airflow:
            yield airflow, emulator


@dataclass
class Lags:
    """Seconds from the end of a job to the end of its task, by the duration of the job, in order.

    Attributes:
        jobs: Of tasks that run a job.
        sleeps: Of tasks that only sleep, and do not fail.
    """

    jobs: dict[int, list[float]] = field(default_factory=lambda: {seconds: [] for seconds in SECONDS})
    sleeps: dict[int, list[float]] = field(default_factory=lambda: {seconds: [] for seconds in SECONDS})


def _lags(airflow: LocalAirflow, emulator: Emulator, rounds: int) -> Lags:
    """Run a job of every duration in each round, the shortest begun first, so that no two end together.

    The first job is not measured: a triggerer that has just started is late for other reasons.
    """
    _succeeded(airflow, "crowd", _start(airflow, "crowd", {"flow": f"lasts-{WARM_UP_SECONDS}"}))
    lags = Lags()
    for _ in range(rounds):
        runs = {}
        for seconds in SECONDS:
            runs[seconds] = (
                _start(airflow, f"lasts_{seconds}"),
                _start(airflow, "sleeps", {"seconds": seconds}),
            )
            time.sleep(3)  # so that what is measured is not the start of the others
        time.sleep(SECONDS[-1] + AFTERWARDS_SECONDS)  # nor how much is asked of Airflow to learn of it
        for seconds, (run, sleep) in runs.items():
            lags.jobs[seconds].append(_lag(airflow, emulator, f"lasts_{seconds}", run))
            if airflow.wait_for("sleeps", sleep, "job") == "success":
                ended = _moment(airflow.task("sleeps", sleep, "job")["end_date"])
                lags.sleeps[seconds].append(ended - airflow.xcom("sleeps", sleep, "job"))
    return lags


def _lag(airflow: LocalAirflow, emulator: Emulator, dag_id: str, run_id: str) -> float:
    task = _succeeded(airflow, dag_id, run_id)
    (job,) = [job for job in emulator.control.jobs() if job["message"] == run_id]
    return _moment(task["end_date"]) - _moment(job["completed_at"])


def _succeeded(airflow: LocalAirflow, dag_id: str, run_id: str) -> dict[str, Any]:
    state = airflow.wait_for(dag_id, run_id, "job")
    assert state == "success", f"{dag_id} {run_id} is {state}"
    return airflow.task(dag_id, run_id, "job")


def _crowds(version: str, airflow: LocalAirflow, emulator: Emulator, options: argparse.Namespace) -> None:
    """Run many tasks at once, and print how many failed although their job completed."""
    total = 0
    deferred: list[str] = []
    failed: list[str] = []
    lost: list[str] = []
    for _ in range(options.rounds):
        with _busy(options.busy):
            flows = [f"lasts-{CROWD_SECONDS[number % len(CROWD_SECONDS)]}" for number in range(options.crowd)]
            runs = [_start(airflow, "crowd", {"flow": flow}) for flow in flows]
            states = [airflow.wait_for("crowd", run, "job", timeout=CROWD_LIMIT_SECONDS) for run in runs]
        jobs = {job["message"]: job["state"] for job in emulator.control.jobs()}
        total += len(runs)
        deferred += [run for run in runs if "deferred (waiting in the triggerer)" in _log(airflow, run)]
        unsuccessful = [run for run, state in zip(runs, states, strict=True) if state != "success"]
        failed += unsuccessful
        lost += [run for run in unsuccessful if jobs.get(run) == "completed"]
    print(
        f"{version}: {total} tasks, {len(deferred)} of them deferred; {len(failed)} failed, "
        f"{len(lost)} of them although their job completed"
    )
    margins = _margins(airflow, deferred)
    if margins:
        print(f"  margins: at least {min(margins):.1f} s, median {median(margins):.1f} s", flush=True)
    for run in failed:
        reasons = "\n".join(airflow.scheduler_warnings(run))
        print(f"  {run}\n{_log(airflow, run)}The scheduler says:\n{reasons}", flush=True)


def _margins(airflow: LocalAirflow, runs: list[str]) -> list[float]:
    noticed: dict[str, float] = {}
    for line in airflow.scheduler.log.read_text(errors="replace").splitlines():
        if found := _NOTICE.search(line):
            noticed.setdefault(found["run"], _moment(found["moment"]))
    margins = []
    for run in runs:
        lines = (json.loads(line) for line in _log(airflow, run).splitlines() if line.startswith("{"))
        fired = [_moment(line["timestamp"]) for line in lines if line["event"] == "Trigger fired event"]
        if fired and run in noticed:
            margins.append(min(fired) - noticed[run])
    return margins


def _log(airflow: LocalAirflow, run_id: str) -> str:
    return airflow.logs("crowd", run_id, "job")


def _start(airflow: LocalAirflow, dag_id: str, conf: dict[str, Any] | None = None) -> str:
    while True:
        try:
            return airflow.trigger(dag_id, conf, logical_date=datetime.now(UTC))
        except ServerError:  # a crowd is more than Airflow's SQLite can take
            time.sleep(1)


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
    program = "from importlib.metadata import version; print(version('apache-airflow-core'))"
    done = subprocess.run([binaries / "python", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _print_table(found: dict[str, Lags]) -> None:
    print("seconds from the end of a job to the end of its task: first / learned / sleep")
    print("| job of | " + " | ".join(found) + " |")
    print("|---|" + "---|" * len(found))
    for seconds in SECONDS:
        cells = [_cell(lags.jobs[seconds], lags.sleeps[seconds]) for lags in found.values()]
        print(f"| {seconds} s | " + " | ".join(cells) + " |", flush=True)


def _cell(jobs: list[float], sleeps: list[float]) -> str:
    first, *learned = jobs
    kinds = ([first], learned, sleeps)
    return " / ".join(f"{median(lags):.1f}" if lags else "-" for lags in kinds)


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    main()
