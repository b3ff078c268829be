"""The DAGs of `benchmarks/deferral.py`: one job each, with the operator's default settings."""

from airflow.sdk import DAG

from noukai_airflow.operators.noukai import NoukaiRunJobOperator

SECONDS = (1, 2, 4, 6, 8, 10, 12, 15, 20, 30, 40, 60)

for seconds in SECONDS:
    with DAG(f"lasts_{seconds}", schedule=None) as dag:
        NoukaiRunJobOperator(
            task_id="job",
            flow=f"acme/benchmark/lasts-{seconds}",
            message="{{ run_id }}",
            deferrable=True,
        )
    globals()[dag.dag_id] = dag

with DAG("crowd", schedule=None) as crowd:
    NoukaiRunJobOperator(
        task_id="job",
        flow="acme/benchmark/{{ dag_run.conf['flow'] }}",
        message="{{ run_id }}",
        deferrable=True,
    )
