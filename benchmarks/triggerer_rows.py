"""Fills the database of `triggerer.py` with deferred tasks: `triggerer_rows.py FILE`.

The file holds, as JSON, the triggers of each queue: `{queue: [[classpath, arguments], …]}`. A task
that really defers costs a second of a worker's processor, and a thousand of them for each line of the table
would take longer than the benchmark may. The triggerer sees the same rows either way.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.models.dag_version import DagVersion
from airflow.models.dagbundle import DagBundleModel
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.sdk import DAG
from airflow.sdk.bases.operator import BaseOperator
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType

BUNDLE, TASK = "benchmark", "job"


def main(queues: dict[str, list[tuple[str, dict[str, Any]]]]) -> None:
    """Write one DAG, and a run of it for each queue with one deferred, mapped task instance a trigger."""
    with DAG("benchmark", schedule=None) as dag:
        BaseOperator(task_id=TASK)
    lazy = LazyDeserializedDAG.from_dag(dag)
    with create_session() as session:
        session.add(DagBundleModel(name=BUNDLE))
        session.flush()
        SerializedDAG.bulk_write_to_db(BUNDLE, None, [lazy], session=session)
        SerializedDagModel.write_dag(lazy, bundle_name=BUNDLE, session=session)
        session.flush()
        version = DagVersion.get_latest_version("benchmark", session=session)
        stored = SerializedDagModel.get_dag("benchmark", session=session)
        for queue, triggers in queues.items():
            run = stored.create_dagrun(
                run_id=queue,
                run_after=datetime.now(UTC),
                run_type=DagRunType.MANUAL,
                triggered_by=DagRunTriggeredByType.CLI,
                state=DagRunState.RUNNING,
                session=session,
            )
            for place, (classpath, arguments) in enumerate(triggers):
                trigger = Trigger(classpath, arguments, queue=queue)
                session.add(trigger)
                session.flush()
                instance = TaskInstance(stored.get_task(TASK), version.id, run.run_id, map_index=place)
                instance.state = TaskInstanceState.DEFERRED
                instance.trigger_id = trigger.id
                session.add(instance)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
