"""The DAGs of `benchmarks/deferral.py`: one job each, with the operator's default settings, and a peer."""

from __future__ import annotations

import os
import time
from typing import NoReturn

from airflow.sdk import DAG, BaseOperator, Context
from deferral_peer import SleepUntilTrigger

from noukai_airflow.operators.noukai import NoukaiRunJobOperator

SECONDS = (1, 2, 4, 6, 8, 10, 12, 15, 20, 30, 40, 60)
DEFERRED_AT_ONCE = {"inline_wait": 0} if "BENCHMARK_DEFERRED_AT_ONCE" in os.environ else {}


class SleepOperator(BaseOperator):
    """Defers for as long as the run's configuration says, and returns the moment at which that ended."""

    def execute(self, context: Context) -> NoReturn:
        """Defer."""
        moment = time.time() + context["dag_run"].conf["seconds"]
        self.defer(trigger=SleepUntilTrigger(moment), method_name="resume")

    def resume(self, context: Context, event: float) -> float:
        """End."""
        return event


for seconds in SECONDS:
    with DAG(f"lasts_{seconds}", schedule=None) as dag:
        NoukaiRunJobOperator(
            task_id="job",
            flow=f"acme/benchmark/lasts-{seconds}",
            message="{{ run_id }}",
            deferrable=True,
        )
    globals()[dag.dag_id] = dag

with DAG("sleeps", schedule=None) as sleeps:
    SleepOperator(task_id="job")

with DAG("crowd", schedule=None) as crowd:
    NoukaiRunJobOperator(
        task_id="job",
        flow="acme/benchmark/{{ dag_run.conf['flow'] }}",
        message="{{ run_id }}",
        deferrable=True,
        retries=0,
        **DEFERRED_AT_ONCE,
    )
