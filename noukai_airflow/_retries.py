"""Whether Airflow runs a task once more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from noukai_airflow._xcoms import task_instance_of

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context


def retry_left(operator: BaseOperator, context: Context, error: Exception | None = None) -> bool:
    """Return whether a task runs again after it has failed.

    Args:
        operator: The task.
        context: Its context.
        error: What it fails with, if that is known: it may rule a retry out, as the task's retry policy may.
    """
    if isinstance(error, AirflowFailException):
        return False
    task_instance = task_instance_of(context)
    left = bool(operator.retries) and task_instance.try_number <= task_instance.max_tries
    policy: Any = getattr(operator, "retry_policy", None)
    if policy is None or error is None:
        return left
    try:
        decision = policy.evaluate(error, task_instance.try_number, task_instance.max_tries, context)
    except Exception:
        return left  # as Airflow decides then, which evaluates the policy again and logs the error
    action = decision.action.value
    return action == "reschedule" or (left and action != "fail")


def ran_before(context: Context, *, resumed: bool) -> bool:
    """Return whether an earlier try, or this one before it was deferred or rescheduled, may have made jobs.

    Args:
        context: The context of the task.
        resumed: Whether this try was deferred before.
    """
    rescheduled = bool(dict(context).get("task_reschedule_count"))
    return resumed or rescheduled or task_instance_of(context).try_number > 1
