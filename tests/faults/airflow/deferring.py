"""Writes tasks into Airflow's database as workers leave them that have just deferred.

A task that really defers costs a second of a worker's processor, so a thousand of them are too many for a
test. The triggerer finds the same rows either way. As a program, it reads one order a line, in Airflow's own
environment, and answers each with a line when it is done.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from airflow.models.dag_version import DagVersion
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.triggers.base import BaseTrigger
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState

from noukai_airflow.triggers.noukai import NoukaiJobTrigger
from noukai_core import Noukai
from tests.faults.airflow.census import Census

DAG, TASK = "waiting", "job"


def defer(run_id: str, queue: str | None, triggers: Iterator[BaseTrigger]) -> None:
    """Write one deferred, mapped instance of the task for each trigger into a run."""
    with create_session() as session:
        version = DagVersion.get_latest_version(DAG, session=session)
        dag = SerializedDagModel.get_dag(DAG, session=session)
        assert version is not None and dag is not None
        for place, trigger in enumerate(triggers):
            row = Trigger.from_object(trigger)
            row.queue = queue
            session.add(row)
            session.flush()
            instance = TaskInstance(dag.get_task(TASK), version.id, run_id, map_index=place)
            instance.state = TaskInstanceState.DEFERRED
            instance.trigger_id = row.id
            instance.next_method = "execute_complete"
            instance.next_kwargs = {}
            session.add(instance)


def job_triggers(jobs: list[dict[str, Any]], **arguments: Any) -> Iterator[BaseTrigger]:
    """Make the triggers that the operator makes when it defers."""
    with Noukai("nk_test_never_sent") as client:
        for job in jobs:
            submitted_at = datetime.fromisoformat(job["submitted_at"])
            handle = client.flow(job["flow"]).attach(job["id"], submitted_at=submitted_at)
            yield NoukaiJobTrigger.for_job(handle, **arguments, cancel_on_kill=True)


def main() -> None:
    """Carry out the orders of the standard input."""
    for line in sys.stdin:
        order = json.loads(line)
        run_id, queue, jobs = (order.pop(name) for name in ("run_id", "queue", "jobs"))
        defer(run_id, queue, iter([Census()]) if jobs is None else job_triggers(jobs, **order))
        print("done", flush=True)


if __name__ == "__main__":
    main()
