"""What a trigger asks Airflow about its task, and what it writes there."""

from __future__ import annotations

import contextvars
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.xcom import XCom

from noukai_airflow._task_states import published_by_task, push_status, state_of_task

TASK = SimpleNamespace(dag_id="dag", run_id="run", task_id="task", map_index=-1)
MAPPED = SimpleNamespace(dag_id="dag", run_id="run", task_id="task", map_index=2)

_try = contextvars.ContextVar("_try", default="none")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests to Airflow, to which it responds with the state of one task."""
    requests: list[Any] = []

    async def asend(request: Any) -> Any:
        requests.append(request)
        name = "task" if request.map_index is None else f"task_{request.map_index}"
        return SimpleNamespace(task_states={"run": {name: "deferred"}})

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(asend=asend), raising=False)
    return requests


@pytest.mark.parametrize("task", [TASK, MAPPED], ids=["single", "mapped"])
async def test_the_state_of_a_task(task: Any, asked: list[Any]) -> None:
    """Only the state of the trigger's own task instance is asked for, whether it is mapped or not."""
    assert await state_of_task(task) == "deferred"
    (request,) = asked
    assert (request.dag_id, request.run_ids, request.task_ids) == ("dag", ["run"], ["task"])


async def test_a_response_without_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error response of Airflow is shown, and is never taken for a state."""

    async def asend(request: Any) -> Any:
        return "ErrorResponse: forbidden"

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(asend=asend), raising=False)
    with pytest.raises(RuntimeError, match="response to a request for task states was 'ErrorResponse: forb"):
        await state_of_task(TASK)


@pytest.mark.parametrize(("stored", "found"), [("job_1", "job_1"), (None, None), ({"job": 1}, None)])
async def test_what_a_task_published(
    stored: object, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The XCom is read outside the context of the trigger's try, and counts only if it is a text."""
    contexts = []

    async def aget_one(**_: Any) -> object:
        contexts.append(_try.get())
        return stored

    monkeypatch.setattr(XCom, "aget_one", aget_one, raising=False)
    token = _try.set("the trigger's")
    try:
        assert await published_by_task(MAPPED, "job_id") == found
    finally:
        _try.reset(token)
    assert contexts == ["none"]


async def test_the_status_is_pushed_where_that_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The status goes to the XCom of the task instance; an Airflow without an async write gets none."""
    pushed = []

    async def aset(key: str, value: object, **where: Any) -> None:
        pushed.append((key, value, where["task_id"], where["map_index"]))

    monkeypatch.setattr(XCom, "aset", aset, raising=False)
    await push_status(MAPPED, "job_status", {"state": "running"})
    monkeypatch.setattr(XCom, "aset", None)
    await push_status(MAPPED, "job_status", {"state": "completed"})
    assert pushed == [("job_status", {"state": "running"}, "task", 2)]
