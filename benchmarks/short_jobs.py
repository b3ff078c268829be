"""How soon does a task succeed after its short job has ended: polled inline first, or deferred at once?

    .venv/airflow/bin/python benchmarks/short_jobs.py

On a live Airflow (scheduler, triggerer, API server, DAG processor; SQLite, Airflow's own intervals) beside a
local Noukai. Jobs run for `SECONDS`; every round runs one task of each kind, one after the other. `lag` is
the time from the end of the job, by the local Noukai, to the end of the task, by Airflow.
"""

from __future__ import annotations

import json
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from devtools.airflow_server import LocalAirflow
from noukai_core.emulator import Emulator

CHECKOUT = Path(__file__).resolve().parents[1]
KEY = "nk_test_benchmrk_0123456789abcdef0123456789abcdef"
DAG, KINDS = "short_jobs", ("inline", "deferred")
SECONDS, ROUNDS = 2.0, 5


def main() -> None:
    """Print the lags of both kinds."""
    lags: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with Emulator({"short": {"after_seconds": SECONDS}}) as emulator, tempfile.TemporaryDirectory() as folder:
        connection = {"conn_type": "noukai", "password": KEY, "host": emulator.base_url}
        binaries, home = Path(sys.executable).parent, Path(folder, "airflow")
        environment = {"AIRFLOW_CONN_NOUKAI_DEFAULT": json.dumps(connection)}
        with LocalAirflow(binaries, home, [CHECKOUT / "benchmarks/dags"], environment=environment) as airflow:
            for _ in range(ROUNDS):
                run = airflow.trigger(DAG)
                for kind in KINDS:
                    airflow.wait_for(DAG, run, kind, "success", timeout=120)
                    task = airflow.task(DAG, run, kind)
                    (job,) = [job for job in emulator.control.jobs() if job["message"] == f"{run} {kind}"]
                    lags[kind].append(_moment(task["end_date"]) - _moment(job["completed_at"]))
    peer = median(lags["deferred"])
    for kind, found in lags.items():
        print(
            f"{kind:9} lag {median(found):5.1f} s (from {min(found):.1f} to {max(found):.1f}), "
            f"{median(found) / peer:.2f} x deferred at once"
        )


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    main()
