"""A DAG whose file is gone for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devtools.processes import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e_airflow.conftest import Runs

LONG = {"outcome": "never"}
DAG = """
from airflow.sdk import DAG

from noukai_airflow.operators.noukai import NoukaiRunJobOperator

FLOW = "acme/tests/{{ dag_run.conf['flow'] }}"

with DAG("gone", schedule=None) as dag:
    NoukaiRunJobOperator(
        task_id="job", flow=FLOW, message="Hello", deferrable=True, inline_wait=0, poll_interval=0.5
    )
"""


def test_a_file_that_is_gone(runs: Runs, changing_dags: Path) -> None:
    """While a DAG file is gone, a user's act cancels a job, and a result is kept until the file is back."""
    file = changing_dags / "gone.py"
    file.write_text(DAG)
    completed, failed = runs.start("gone", **LONG), runs.start("gone", **LONG)
    for run in (completed, failed):
        run.wait_until_watched()
    job_id = completed.job()["id"]

    file.unlink()
    wait_until(lambda: runs.airflow.get("/dags/gone")["is_stale"], "Airflow to miss the file")
    failed.mark("failed")
    failed.check_abandoned(failed.job()["id"])
    completed.control.finish(job_id, result={"whole": True})
    completed.wait_for("up_for_reschedule")

    file.write_text(DAG)
    completed.check_end(job_id)
