"""The ids of a flow run's submissions: the same in every attempt, and different for each job."""

from __future__ import annotations

import gc
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Mapping, Set
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.context import FlowRunContext
from pydantic import SecretStr

from noukai_prefect._job_store import JobRecord, JobStore, store_of
from noukai_prefect._run_context import RunContext
from noukai_prefect._signing import RecordSigner

FLOW = "acme/spelling/grade-3"
INPUTS = {"message": "hello", "parameters": {"b": 1, "a": 2}}
FLOW_RUN = uuid4()


def context(
    task_run_id: UUID | None = None, *, flow_run_id: UUID = FLOW_RUN, task_attempt: int = 1
) -> RunContext:
    """Return the context of code in a flow run."""
    return RunContext(flow_run_id, task_run_id, task_attempt, None, None)


def test_equal_submissions_have_different_slots() -> None:
    """Three equal submissions of one attempt are three jobs."""
    store = JobStore(uuid4())
    assert len({store.slot(context(uuid4()), FLOW, INPUTS) for _ in range(3)}) == 3


def test_a_rerun_gets_the_same_slots() -> None:
    """The next attempt, with a new store, gets the same slots in any order."""
    scope = uuid4()
    first, second = JobStore(scope), JobStore(scope)
    slots = {first.slot(context(uuid4()), FLOW, INPUTS) for _ in range(3)}
    assert {second.slot(context(uuid4()), FLOW, INPUTS) for _ in range(3)} == slots


def test_a_store_ends_with_its_attempt() -> None:
    """Each attempt of a run has one store, and a process that runs many flows keeps none of them."""
    run = replace(context(uuid4()), attempt=FlowRunContext.model_construct())
    store = store_of(run)
    assert store is not None
    assert store_of(run) is store
    assert store_of(replace(run, attempt=FlowRunContext.model_construct())) is not store
    gone = weakref.ref(store)
    del run, store
    gc.collect()
    assert gone() is None


def test_a_task_retry_keeps_its_slots() -> None:
    """The retry of a task that submits twice gets both of its slots again, and no other task's."""
    store = JobStore(uuid4())
    mine, other = uuid4(), uuid4()
    slots = [store.slot(context(mine), FLOW, INPUTS) for _ in range(2)]
    store.slot(context(other), FLOW, INPUTS)
    again = context(mine, task_attempt=2)
    assert [store.slot(again, FLOW, INPUTS) for _ in range(2)] == slots
    assert store.slot(again, FLOW, INPUTS) not in slots


@pytest.mark.parametrize(
    ("flow", "inputs"),
    [
        ("acme/spelling/grade-4", INPUTS),
        (FLOW, {**INPUTS, "message": "hallo"}),
        (FLOW, {**INPUTS, "server": "http://other"}),
    ],
)
def test_other_inputs_have_other_slots(flow: str, inputs: dict[str, Any]) -> None:
    """A different flow, input or server has a different slot."""
    store = JobStore(uuid4())
    assert store.slot(context(), FLOW, INPUTS) != store.slot(context(), flow, inputs)


def test_the_order_of_parameters_does_not_matter() -> None:
    """Inputs that differ only in the order of their keys are equal."""
    scope = uuid4()
    turned = {"parameters": {"a": 2, "b": 1}, "message": "hello"}
    assert JobStore(scope).slot(context(), FLOW, INPUTS) == JobStore(scope).slot(context(), FLOW, turned)


def test_flow_runs_share_nothing() -> None:
    """Two flow runs with the same inputs have different slots."""
    assert JobStore(uuid4()).slot(context(), FLOW, INPUTS) != JobStore(uuid4()).slot(context(), FLOW, INPUTS)


def test_threads_never_share_a_slot() -> None:
    """Mapped tasks that submit at the same moment get different slots."""
    store, slots, gate = JobStore(uuid4()), list[str](), threading.Barrier(20)

    def submit() -> None:
        gate.wait(10)
        slots.append(store.slot(context(uuid4()), FLOW, INPUTS))

    threads = [threading.Thread(target=submit) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(set(slots)) == 20


def test_a_record_survives_its_artifact() -> None:
    """A record that was read equals the one that was stored; the next one has a new submission id."""
    record = JobRecord(
        submission_id=str(uuid4()),
        flow=FLOW,
        slot=str(uuid4()),
        resubmission=2,
        last_sent_at=datetime.now(UTC),
        job_id="job_1",
        ended=True,
        credentials="default",
        artifact_id=uuid4(),
    )
    signer = RecordSigner(SecretStr("nk_test_signs"), uuid4())
    metadata = record.metadata(signer)
    assert JobRecord.read(metadata, record.artifact_id) == replace(record, signature=metadata["signature"])
    after = record.next()
    assert (after.slot, after.resubmission, after.job_id, after.ended) == (record.slot, 3, None, False)
    assert after.submission_id != record.submission_id


@pytest.mark.parametrize("metadata", [{}, {"submission_id": "x"}, {"note": "unrelated"}])
def test_an_unrelated_artifact_is_no_record(metadata: dict[str, str]) -> None:
    """An artifact with the same key but other content is ignored."""
    assert JobRecord.read(metadata, uuid4()) is None


class Parameters(Mapping[str, Any]):
    """A mapping of a user's own, whose `repr` is another one in each process."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Events(Set[str]):
    """A set whose order another process may not share."""

    def __init__(self, *events: str) -> None:
        self._events = events

    def __contains__(self, event: object) -> bool:
        return event in self._events

    def __iter__(self) -> Iterator[str]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)


def row() -> sqlite3.Row:
    """Return a row of a database."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.row_factory = sqlite3.Row
        fetched: sqlite3.Row = database.execute("select 1 a, 'x' b").fetchone()
        return fetched


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (Parameters({"a": {"b": 1}}), Parameters({"a": {"b": 1}})),
        ({"ticket": row()}, {"ticket": row()}),
        (Events("flow.completed", "flow.failed"), Events("flow.failed", "flow.completed")),
    ],
    ids=["mapping", "row", "set"],
)
def test_equal_values_of_any_type_have_one_slot(first: Any, again: Any) -> None:
    """A rerun finds its slot by what is sent, whatever class its inputs have."""
    scope = uuid4()
    slots = {JobStore(scope).slot(context(), FLOW, {"value": value}) for value in (first, again)}
    assert len(slots) == 1
