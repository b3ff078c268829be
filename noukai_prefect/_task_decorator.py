"""The decorator of every task of this package, and which of their errors a retry may help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from noukai_core import InvalidInputError, JobCancelledError, NotSubmittedError, PermanentError

P = ParamSpec("P")
R = TypeVar("R")

_NOT_RETRYABLE = (PermanentError, InvalidInputError, JobCancelledError, NotSubmittedError)

# A worker of background tasks persists every result, and replaces `NO_CACHE` by a policy under which equal
# submissions of a flow run are one. A key of the task run's own takes precedence over that policy.
_RESULT_KEY = "noukai-{task_run.id}"


def is_retryable(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether a retry may succeed, for `retry_condition_fn`. Every task of this package has it set.

    A permanent error and invalid input stay what they are, and a cancelled job was stopped on purpose, as was
    a batch that has reached its `max_cost_usd`. Of a group of errors, such as a batch raises, or a task group
    around batches, one retryable error is enough.
    """
    return _may_pass(getattr(state.data, "result", state.data))


def _may_pass(error: object) -> bool:
    group: Sequence[object] = getattr(error, "exceptions", ())
    return any(map(_may_pass, group)) if group else not isinstance(error, _NOT_RETRYABLE)


def noukai_task(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Return the decorator of a task. It is never cached and persists no result.

    What a rerun needs to find its jobs is kept on the Prefect server, and an outcome must not be replayed.
    """

    def task_run_name(parameters: dict[str, Any]) -> str:
        """Return a name that ends with the slug of the Noukai flow."""
        return f"{name} {str(parameters.get('flow')).rpartition('/')[2]}"

    typed: Any = task_run_name  # Prefect's protocol for this callable has a method that no function has
    return task(
        name=name,
        task_run_name=typed,
        cache_policy=NO_CACHE,
        persist_result=False,
        result_storage_key=_RESULT_KEY,
        retry_condition_fn=is_retryable,
    )
