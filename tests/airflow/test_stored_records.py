"""What the API server reads of tasks, from a database with Airflow's own tables."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.models import import_all_models
from airflow.models.base import Base
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils import session as airflow_session
from sqlalchemy import String, create_engine, insert
from sqlalchemy.orm import Session

from noukai_airflow import _mark_listener
from noukai_airflow._compat import HAS_REGIONS
from noukai_airflow._job_store import RECORD_KEY, JobRecord, JobStore
from noukai_airflow._stored_records import stored_task, tasks_with_jobs
from noukai_airflow._xcoms import BATCH_SESSIONS, JOB_ID
from tests.airflow.conftest import MemoryStore

pytestmark = pytest.mark.skipif(HAS_REGIONS, reason="the rows are those of Airflow before 3.4")

FLOW = "acme/demo/flow"
RUN = SimpleNamespace(dag_id="dag", run_id="run")
PUBLISHED = {"sessions": ["s"], "flow": FLOW, "cancel_with": "noukai_default"}


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A session of a database with two runs of a DAG."""
    import_all_models()
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:

        @contextmanager
        def create_session() -> Iterator[Session]:
            yield session

        for number, run_id in enumerate(("run", "another"), start=1):
            times = {"run_after": datetime.now(UTC), "run_type": "manual", "state": "running"}
            add(session, DagRun, id=number, dag_id="dag", run_id=run_id, **times)
        monkeypatch.setattr(airflow_session, "create_session", create_session)
        yield session
    engine.dispose()


def add(session: Session, model: Any, **values: Any) -> None:
    """Add a row to the table of a model."""
    columns = model.__table__.columns
    if "span_status" in columns:  # before Airflow 3.2
        values["span_status"] = "not_started"
    session.execute(insert(model.__table__).values(**values))


def new_id() -> object:
    """Return the id of a task instance, in the type of its column."""
    column: Any = TaskInstance.__table__.columns["id"]
    return str(uuid.uuid4()) if isinstance(column.type, String) else uuid.uuid4()


def add_task(
    session: Session, task_id: str = "task", map_index: int = -1, *, run_id: str = "run", **values: Any
) -> object:
    """Add a task instance, and return its id."""
    added = new_id()
    key = {"id": added, "dag_id": "dag", "run_id": run_id, "task_id": task_id, "map_index": map_index}
    shared = {"state": "running", "pool": "default_pool", "pool_slots": 1, "max_tries": 0, "try_number": 1}
    add(session, TaskInstance, **key, **shared | values)
    return added


def add_xcom(session: Session, key: str, value: object, task_id: str = "task", map_index: int = -1) -> None:
    """Add an XCom, in the form in which workers write it."""
    where = {"dag_id": "dag", "run_id": "run", "task_id": task_id, "map_index": map_index, "dag_run_id": 1}
    add(session, XComModel, key=key, value=value, **where)


def add_stored(session: Session, value: object, task_id: str = "task", map_index: int = -1) -> None:
    """Add an entry of the task state store."""
    model: Any = pytest.importorskip("airflow.models.task_state_store").TaskStateStoreModel
    where = {"dag_id": "dag", "run_id": "run", "task_id": task_id, "map_index": map_index, "dag_run_id": 1}
    add(session, model, key=RECORD_KEY, value=json.dumps(value), **where)


def record(number: int) -> tuple[JobRecord, Any]:
    """Return a record, and the form in which it is stored."""
    made = JobRecord.new(0, f"00000000-0000-4000-8000-{number:012}", FLOW, cancel_with="noukai_default")
    store = MemoryStore()
    JobStore(store, cancel_with="noukai_default").write(made)
    return made, store.kept[RECORD_KEY]


def test_a_task_that_was_replaced(database: Session) -> None:
    """A task instance whose row a later try has replaced is none."""
    assert stored_task(new_id(), with_record=True) is None


def test_the_record_of_a_task(database: Session) -> None:
    """The record is that of the task instance, and of no other one of the mapped task or of the run."""
    first, second = record(1), record(2)
    task = add_task(database, map_index=1, state="failed")
    add_xcom(database, RECORD_KEY, second[1], map_index=0)
    add_xcom(database, RECORD_KEY, second[1], "other", map_index=1)
    add_xcom(database, RECORD_KEY, first[1], map_index=1)
    add_xcom(database, BATCH_SESSIONS, PUBLISHED, map_index=1)
    found = stored_task(task, with_record=True)
    assert found is not None
    assert (found.state, found.record, found.batch) == ("failed", first[0], PUBLISHED)


def test_the_task_state_store_comes_first(database: Session) -> None:
    """Where Airflow has a task state store, the record in it is newer than the one in the XComs."""
    first, second = record(1), record(2)
    task = add_task(database)
    add_xcom(database, RECORD_KEY, first[1])
    add_stored(database, second[1])
    found = stored_task(task, with_record=True)
    assert found is not None
    assert found.record == second[0]


def test_a_task_without_a_record(database: Session) -> None:
    """A task that stored nothing, or whose record is not wanted, has only a state."""
    task = add_task(database, state="success")
    found = stored_task(task, with_record=True)
    assert found is not None
    assert (found.state, found.record, found.batch) == ("success", None, None)
    add_xcom(database, RECORD_KEY, record(1)[1])
    unread = stored_task(task, with_record=False)
    assert unread is not None
    assert (unread.record, unread.batch) == (None, None)


def test_the_tasks_of_a_run(database: Session) -> None:
    """The tasks of a run that may have a job are those that wait in a triggerer or have a record."""
    add_task(database, "deferred", state="deferred", trigger_id=7)
    add_task(database, "recorded")
    add_xcom(database, RECORD_KEY, record(1)[1], "recorded")
    for map_index in (0, 1):
        add_task(database, "batch", map_index)
    add_xcom(database, BATCH_SESSIONS, PUBLISHED, "batch", 1)
    add_task(database, "other")
    add_xcom(database, JOB_ID, "job_1", "other")
    add_task(database, "deferred", run_id="another", state="deferred", trigger_id=8)
    found = tasks_with_jobs(database, RUN)
    assert {(task.task_id, task.map_index) for task in found} == {
        ("deferred", -1),
        ("recorded", -1),
        ("batch", 1),
    }
    assert {task.run_id for task in found} == {"run"}


def test_the_tasks_of_a_run_with_a_store(database: Session) -> None:
    """A record in the task state store counts as one in the XComs does, for each mapped task instance."""
    for map_index in (0, 1):
        add_task(database, "recorded", map_index)
    add_stored(database, record(1)[1], "recorded", 1)
    assert [task.map_index for task in tasks_with_jobs(database, RUN)] == [1]


@pytest.mark.parametrize(
    ("notifies", "message", "acted_on"),
    [
        (True, "", {"skipped"}),
        (False, "", {"skipped", "recorded"}),
        (True, "the run's own tasks failed", set()),
    ],
    ids=["a user", "a user, before 3.3", "the scheduler"],
)
def test_a_marked_run(
    notifies: bool,
    message: str,
    acted_on: set[str],
    database: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A user who marks a run ends the jobs of its tasks, also of those that Airflow calls no hook for."""
    monkeypatch.setattr(_mark_listener, "NOTIFIES_TRIGGERS", notifies)
    found: list[str] = []
    monkeypatch.setattr(_mark_listener, "_cancel_later", lambda task: found.append(task.task_id))
    add_task(database, "skipped", state="skipped", trigger_id=7)
    add_task(database, "recorded", state="failed")
    add_xcom(database, RECORD_KEY, record(1)[1], "recorded")
    run: Any = database.get(DagRun, 1)
    _mark_listener.on_dag_run_failed(run, message)
    assert set(found) == acted_on
    found.clear()
    _mark_listener.on_dag_run_success(run, message)
    assert set(found) == acted_on
