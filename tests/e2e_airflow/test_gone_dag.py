"""A DAG whose file is gone for a while, or changes, while jobs run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devtools.processes import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e_airflow.conftest import Runs

LONG = {"outcome": "never"}
DAG = """
from airflow.sdk import DAG

from noukai_airflow.operators.batch import NoukaiRunJobsOperator
from noukai_airflow.operators.noukai import NoukaiRunJobOperator

FLOW = "acme/tests/{{ dag_run.conf['flow'] }}"

with DAG("gone", schedule=None) as dag:
    NoukaiRunJobOperator(
        task_id="job", flow=FLOW, message="Hello", deferrable=True, inline_wait=0, poll_interval=0.5
    )

for dag_id, durable in (("gone_batch", True), ("gone_batch_not_durable", False)):
    with DAG(dag_id, schedule=None):
        NoukaiRunJobsOperator(
            task_id="job",
            flow=FLOW,
            inputs=["a", "b", "c"],
            output_path="{{ dag_run.conf['output'] }}",
            deferrable=True,
            durable=durable,
            poll_interval=0.5,
        )
"""

MOVED = """
from airflow.sdk import DAG

from noukai_airflow.operators.batch import NoukaiRunJobsOperator
from noukai_airflow.operators.noukai import NoukaiRunJobOperator

ARGUMENTS = {
    "flow": "acme/tests/{{ dag_run.conf['flow'] }}",
    "noukai_conn_id": "CONNECTION",
    "deferrable": True,
    "poll_interval": 0.5,
}

with DAG("moved", schedule=None, description="CONNECTION"):
    NoukaiRunJobOperator(task_id="job", message="Hello", inline_wait=0, **ARGUMENTS)

with DAG("moved_batch", schedule=None):
    NoukaiRunJobsOperator(
        task_id="job", inputs=["a"], output_path="{{ dag_run.conf['output'] }}", **ARGUMENTS
    )
"""


def test_another_connection(runs: Runs, changing_dags: Path, tmp_path: Path) -> None:
    """A deferred task gets the result of its job even if its DAG names another connection by then."""
    file = changing_dags / "moved.py"
    file.write_text(MOVED.replace("CONNECTION", "noukai_default"))
    run = runs.start("moved", **LONG)
    batch = runs.prepare("moved_batch", **LONG).start(output=f"file://{tmp_path}/moved")
    for started in (run, batch):
        started.wait_until_watched()
    file.write_text(MOVED.replace("CONNECTION", "elsewhere"))
    wait_until(
        lambda: runs.airflow.get("/dags/moved")["description"] == "elsewhere",
        "Airflow to parse the file again",
    )
    for started in (run, batch):
        started.control.finish(started.job()["id"], result=1)
        assert started.wait_for() == "success"
        assert started.submissions() == 1


def test_a_file_that_is_gone(runs: Runs, changing_dags: Path, tmp_path: Path) -> None:
    """While a DAG file is gone, a user's act cancels a job, and a result is kept until the file is back."""
    file = changing_dags / "gone.py"
    file.write_text(DAG)
    completed, failed = runs.start("gone", **LONG), runs.start("gone", **LONG)
    batches = [
        runs.prepare(dag_id, **LONG).start(output=f"file://{tmp_path}/{dag_id}-{place}")
        for place, dag_id in enumerate(("gone_batch", "gone_batch_not_durable", "gone_batch"))
    ]
    for run in (completed, failed, *batches):
        run.wait_until_watched()
    job_id = completed.job()["id"]

    file.unlink()
    wait_until(lambda: runs.airflow.get("/dags/gone")["is_stale"], "Airflow to miss the file")
    failed.mark("failed")
    failed.check_abandoned(failed.job()["id"])
    batches[-1].mark("failed")
    for job in batches[-1].jobs():
        batches[-1].wait_for_end(job["id"], "cancelled")
    completed.control.finish(job_id, result={"whole": True})
    for batch in batches[:-1]:
        for job in batch.jobs():
            batch.control.finish(job["id"], result=1)
    for run in (completed, *batches[:-1]):
        run.wait_for("up_for_reschedule")

    file.write_text(DAG)
    completed.check_end(job_id)
    for batch in batches[:-1]:
        assert batch.wait_for("success") == "success"
        assert batch.xcom()["counts"] == {"completed": 3}
    assert [batch.submissions() for batch in batches] == [3, 3, 3]
