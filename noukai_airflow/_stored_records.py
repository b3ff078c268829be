"""Reads, in Airflow's API server, what tasks have stored about their jobs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noukai_airflow._compat import HAS_REGIONS
from noukai_airflow._job_store import RECORD_KEY, JobRecord, read_record
from noukai_airflow._xcoms import BATCH_SESSIONS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


@dataclass(frozen=True)
class StoredTask:
    """A task instance in the database.

    Attributes:
        state: Its state.
        record: What it has stored about its job, if that was wanted.
        batch: What it has published about the jobs of its batch, under the same condition.
    """

    state: str
    record: JobRecord | None
    batch: Any = None


def stored_task(task_instance_id: object, *, with_record: bool) -> StoredTask | None:
    """Return the task instance with an id, or `None` if a later try has replaced it."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        found: Any = session.get(TaskInstance, task_instance_id)
        if found is None:
            return None
        if not with_record:
            return StoredTask(str(found.state), None)
        stored = _in_state_store(session, found)
        record = read_record(stored) or read_record(_in_xcoms(session, found, RECORD_KEY))
        return StoredTask(str(found.state), record, _in_xcoms(session, found, BATCH_SESSIONS))


def tasks_with_jobs(session: Session, dag_run: Any) -> list[Any]:
    """Return the task instances of a run that wait in a triggerer, or have a record."""
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import or_, select

    recorded = {*_xcoms_of_run(session, dag_run), *_stores_of_run(session, dag_run)}
    query = select(TaskInstance).where(
        TaskInstance.dag_id == dag_run.dag_id,
        TaskInstance.run_id == dag_run.run_id,
        or_(
            TaskInstance.trigger_id.is_not(None),
            TaskInstance.task_id.in_({task_id for task_id, _ in recorded}),
        ),
    )
    found: list[Any] = list(session.scalars(query))
    return [
        task for task in found if task.trigger_id is not None or (task.task_id, task.map_index) in recorded
    ]


def _xcoms_of_run(session: Session, dag_run: Any) -> list[tuple[str, int]]:
    return [
        (row.task_id, row.map_index)
        for key in (RECORD_KEY, BATCH_SESSIONS)
        for row in _xcoms(session, key, dag_ids=dag_run.dag_id, run_id=dag_run.run_id, region_id=None)
    ]


def _stores_of_run(session: Session, dag_run: Any) -> list[tuple[str, int]]:
    from sqlalchemy import select

    try:
        from airflow.models.task_state_store import TaskStateStoreModel
    except ImportError:  # before Airflow 3.3
        return []
    model: Any = TaskStateStoreModel
    map_index = model.region_index if HAS_REGIONS else model.map_index
    query = select(model.task_id, map_index).where(
        model.dag_id == dag_run.dag_id, model.run_id == dag_run.run_id, model.key == RECORD_KEY
    )
    return [(task_id, index) for task_id, index in session.execute(query)]


def _in_state_store(session: Session, task_instance: Any) -> Any:
    try:
        from airflow._shared.state import TaskScope
        from airflow.state import get_state_backend
    except ImportError:  # before Airflow 3.3
        return None
    scope: dict[str, Any] = {
        "dag_id": task_instance.dag_id,
        "run_id": task_instance.run_id,
        "task_id": task_instance.task_id,
        "map_index": task_instance.map_index,
    }
    if HAS_REGIONS:
        scope["region_id"] = task_instance.region_id
    stored = get_state_backend().get(TaskScope(**scope), RECORD_KEY, session=session)
    return None if stored is None else json.loads(stored)


def _in_xcoms(session: Session, task_instance: Any, key: str) -> Any:
    from airflow.sdk.execution_time.xcom import XCom

    rows = _xcoms(
        session,
        key,
        dag_ids=task_instance.dag_id,
        run_id=task_instance.run_id,
        task_ids=task_instance.task_id,
        map_indexes=task_instance.map_index,
        region_id=task_instance.region_id if HAS_REGIONS else None,
    )
    backend: Any = XCom
    return backend.deserialize_value(rows[0]) if rows else None


def _xcoms(session: Session, key: str, *, region_id: Any, **which: Any) -> list[Any]:
    from airflow.models.xcom import XComModel

    if HAS_REGIONS:
        which["region_id"] = region_id
    return list(session.scalars(XComModel.get_many(key=key, **which)))
