"""The DAG of `benchmarks/short_jobs.py`: the same short job, polled inline first and deferred at once."""

from airflow.sdk import chain, dag

from noukai_airflow.operators.noukai import NoukaiRunJobOperator


@dag(schedule=None)
def short_jobs() -> None:
    waits = {"inline": 3.0, "deferred": 0.0}
    chain(
        *(
            NoukaiRunJobOperator(
                task_id=name,
                flow="acme/benchmark/short",
                message="{{ run_id }} {{ task.task_id }}",
                deferrable=True,
                inline_wait=seconds,
            )
            for name, seconds in waits.items()
        )
    )


short_jobs()
