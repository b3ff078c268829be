"""A batch that stops submitting when its jobs have cost enough. What was left out is in `failed.jsonl`."""

from __future__ import annotations

import tempfile

from airflow.sdk import dag

from noukai_airflow.operators.batch import NoukaiRunJobsOperator


@dag(schedule=None, tags=["noukai"])
def noukai_batch_cost_cap() -> None:
    NoukaiRunJobsOperator(
        task_id="label",
        flow="acme/tickets/label",
        inputs=[f"Ticket {number}" for number in range(50)],
        output_path=f"file://{tempfile.gettempdir()}/noukai-labels/{{{{ run_id }}}}",
        trace=True,
        max_cost_usd="0.001",
        max_concurrency=5,
        fail_on="all",
    )


noukai_batch_cost_cap()
