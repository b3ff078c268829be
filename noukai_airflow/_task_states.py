"""Requests to Airflow about a task, from inside a triggerer, and the XCom that is written there.

They use internal messages of Airflow.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import GetTaskStates
from airflow.sdk.execution_time.xcom import XCom

from noukai_airflow._kill_policy import state_of


async def state_of_task(task: Any) -> str | None:
    """Return the current state of a task instance in the database."""
    response: Any = await task_runner.SUPERVISOR_COMMS.asend(
        GetTaskStates(
            dag_id=task.dag_id,
            task_ids=[task.task_id],
            run_ids=[task.run_id],
            map_index=task.map_index if task.map_index >= 0 else None,
        )
    )
    if not hasattr(response, "task_states"):
        raise RuntimeError(f"Airflow's response to a request for task states was {response!r}")
    return state_of(response.task_states, task.run_id, task.task_id, task.map_index)


async def published_by_task(task: Any, key: str) -> str | None:
    """Return what a task instance currently waits for, from its XCom."""
    reading = XCom.aget_one(
        key=key, dag_id=task.dag_id, task_id=task.task_id, run_id=task.run_id, map_index=task.map_index
    )
    # In the trigger's own context, Airflow 3.4 reads on behalf of the trigger's try, and refuses to once a
    # clear has ended that try. The XCom of the new try is needed here.
    value = await asyncio.create_task(reading, context=contextvars.Context())
    return value if isinstance(value, str) else None


async def push_status(task: Any, key: str, summary: dict[str, Any]) -> None:
    """Write an XCom of a task instance, from Airflow 3.3 on. Before, every write blocks."""
    push = getattr(XCom, "aset", None)
    if push is not None:
        await push(
            key,
            summary,
            dag_id=task.dag_id,
            task_id=task.task_id,
            run_id=task.run_id,
            map_index=task.map_index,
        )
