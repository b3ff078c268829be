"""Thousands of jobs in one Airflow task, deferred and on the worker, beside a mapped task for each job.

    .venv/airflow/bin/python benchmarks/airflow_batch.py [--jobs 5000] [--mapped 1000] [--only deferred …]

A live Airflow (scheduler, triggerer, API server, DAG processor; SQLite) with its default limit of 50 polls a
second, beside a local Noukai in a process of its own. The durations of the jobs are even between the two.
`end` is the time from the start of the run to its end, as a multiple of the longest job. `slots`
are the worker's: for how many seconds they were occupied, per job. The memory is what a process has written
to and shares with no other: that of all tasks that run at the same time, at most, and what the triggerer
needs beyond what it needed before the run. A small batch comes first, so that all libraries are loaded.
`requests` leaves the submissions out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import tempfile
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from batch import inputs
from local_services import local_noukai

from devtools.airflow_server import FINAL_STATES, LocalAirflow
from devtools.processes import descendants, title, wait_until
from noukai_core.emulator import EmulatorControl

CHECKOUT = Path(__file__).resolve().parents[1]
KEY = "nk_test_benchmrk_0123456789abcdef0123456789abcdef"
DAGS = {"deferred": "batch_deferred", "worker": "batch_on_worker", "mapped": "expanded"}
NAMES = {
    "deferred": "NoukaiRunJobsOperator, deferred",
    "worker": "NoukaiRunJobsOperator, on a worker",
    "mapped": "NoukaiRunJobOperator, expanded",
}
WARM_UP = (20, 2.0, 20.0)
LIMIT_SECONDS = 7200.0

_TASK = re.compile(r"airflow worker -- [0-9a-f-]{36}")


class Watch:
    """Looks once a second at the processes of the tasks and at the triggerer's."""

    def __init__(self, airflow: LocalAirflow) -> None:
        self._airflow = airflow
        self._ended = threading.Event()
        self._idle = self._triggerer()
        self.slot_seconds = self.tasks_memory = self.triggerer_memory = 0.0

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(1.0):
            tasks = [pid for pid in descendants(self._airflow.scheduler.pid) if _TASK.fullmatch(title(pid))]
            self.slot_seconds += len(tasks)
            self.tasks_memory = max(self.tasks_memory, _memory(tasks))
            self.triggerer_memory = max(self.triggerer_memory, self._triggerer() - self._idle)

    def _triggerer(self) -> float:
        pid = self._airflow.triggerer.pid
        return _memory([pid, *descendants(pid)])


def _memory(pids: Iterable[int]) -> float:
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += sum(each.private_dirty for each in psutil.Process(pid).memory_maps())
    return total / 1e6


def measure(
    shape: str,
    airflow: LocalAirflow,
    control: EmulatorControl,
    folder: Path,
    jobs: int,
    shortest: float,
    longest: float,
) -> str:
    """Run the jobs in one shape, and return its line."""
    own = Path(tempfile.mkdtemp(dir=folder))  # a run of the same size may have been before
    source = own / "inputs.jsonl"
    source.write_text("".join(f"{json.dumps(each)}\n" for each in inputs(jobs, shortest, longest)))
    conf = {
        "inputs": source.as_uri(),
        "outputs": (own / "outputs").as_uri(),
        **{"jobs": jobs, "shortest": shortest, "longest": longest},
    }
    before = control.counts()
    with Watch(airflow) as watch:
        run = airflow.trigger(DAGS[shape], conf, logical_date=datetime.now(UTC))
        wait_until(
            lambda: airflow.run_state(DAGS[shape], run) in FINAL_STATES,
            f"the end of {run}",
            timeout=LIMIT_SECONDS,
            pause=1.0,
        )
    found = airflow.get(f"/dags/{DAGS[shape]}/dagRuns/{run}")
    assert found["state"] == "success", found
    started, ended = (datetime.fromisoformat(found[name]) for name in ("start_date", "end_date"))
    counts = {name: count - before.get(name, 0) for name, count in control.counts().items()}
    assert counts["submit"] == jobs, counts
    requests = sum(counts.values()) - jobs
    return (
        f"{NAMES[shape]:36} {jobs:6} {(ended - started).total_seconds() / longest:6.2f}x "
        f"{watch.slot_seconds / jobs:8.2f} {watch.tasks_memory:6.0f} {watch.triggerer_memory:10.1f} "
        f"{requests / jobs:9.2f}"
    )


def main() -> None:
    """Print a table of all shapes, measured in one run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--mapped", type=int, default=1000, help="jobs of the mapped task")
    parser.add_argument("--shortest", type=float, default=60.0, help="seconds of the shortest job")
    parser.add_argument("--longest", type=float, default=120.0, help="seconds of the longest job")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=list(NAMES))
    given = parser.parse_args()
    binaries = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as path, local_noukai() as base_url:
        folder = Path(path)
        control = EmulatorControl(base_url)
        connection = {"conn_type": "noukai", "password": KEY, "host": base_url}
        environment = {
            "AIRFLOW_CONN_NOUKAI_DEFAULT": json.dumps(connection),
            "PYTHONPATH": str(CHECKOUT / "benchmarks"),
        }
        dags = [CHECKOUT / "benchmarks/dags"]
        home = folder / "airflow"
        with LocalAirflow(binaries, home, dags, environment=environment, parallelism=32) as airflow:
            print(
                f"{'':36} {'jobs':>6} {'end':>7} {'slots s':>8} {'MB':>6} {'triggerer':>10} {'requests':>9}",
                flush=True,
            )
            measure("deferred", airflow, control, folder, *WARM_UP)
            for shape in given.only:
                jobs = given.mapped if shape == "mapped" else given.jobs
                line = measure(shape, airflow, control, folder, jobs, given.shortest, given.longest)
                print(line, flush=True)


if __name__ == "__main__":
    main()
