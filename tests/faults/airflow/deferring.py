"""Writes deferred tasks into Airflow's database.

A real deferral takes a second of a worker's processor time, so a thousand of them are too many for a test.
The triggerer finds the same rows. As a program, this module runs in Airflow's environment, reads one request
per line, and responds to each with a line.
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
    """Write a deferred, mapped task instance into a run for each trigger."""
    with create_session() as session:
        version = DagVersion.get_latest_version(DAG, session=session)
        dag = SerializedDagModel.get_dag(DAG, session=session)
        assert version is not None
        assert dag is not None
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
    """Make the triggers that the operator would make."""
    with Noukai("nk_test_never_sent") as client:
        for job in jobs:
            submitted_at = datetime.fromisoformat(job["submitted_at"])
            handle = client.flow(job["flow"]).attach(job["id"], submitted_at=submitted_at)
            yield NoukaiJobTrigger.for_job(handle, **arguments, cancel_on_kill=True)


def main() -> None:
    """Process the requests on standard input."""
    for line in sys.stdin:
        request = json.loads(line)
        run_id, queue, jobs = (request.pop(name) for name in ("run_id", "queue", "jobs"))
        defer(run_id, queue, iter([Census()]) if jobs is None else job_triggers(jobs, **request))
        print("done", flush=True)


if __name__ == "__main__":
    main()
