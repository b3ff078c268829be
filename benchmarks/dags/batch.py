"""The DAGs of `benchmarks/airflow_batch.py`: many jobs in one task, and in a mapped task for each."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task

from noukai_airflow.operators.batch import NoukaiRunJobsOperator
from noukai_airflow.operators.noukai import NoukaiRunJobOperator

FLOW = "acme/spelling/grade-3"


def batch(*, deferrable: bool) -> None:
    """Add the task that runs all jobs."""
    NoukaiRunJobsOperator(
        task_id="jobs",
        flow=FLOW,
        inputs="{{ dag_run.conf['inputs'] }}",
        output_path="{{ dag_run.conf['outputs'] }}",
        max_concurrency=10_000,
        deferrable=deferrable,
    )


@dag(schedule=None)
def batch_deferred() -> None:
    """Wait in the triggerer."""
    batch(deferrable=True)


@dag(schedule=None)
def batch_on_worker() -> None:
    """Wait on the worker."""
    batch(deferrable=False)


@dag(schedule=None, max_active_tasks=1000)
def expanded() -> None:
    """Run a deferrable task for each job."""

    @task
    def inputs(dag_run: Any = None) -> list[dict[str, Any]]:
        jobs, shortest, longest = (dag_run.conf[name] for name in ("jobs", "shortest", "longest"))
        return [
            {
                "message": "x" * 200,
                "parameters": {
                    "_emulator": {"after_seconds": shortest + (longest - shortest) * number / jobs}
                },
            }
            for number in range(jobs)
        ]

    NoukaiRunJobOperator.partial(
        task_id="jobs", flow=FLOW, deferrable=True, inline_wait=0, max_active_tis_per_dag=None
    ).expand_kwargs(inputs())


batch_deferred()
batch_on_worker()
expanded()
