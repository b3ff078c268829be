"""`@task.noukai_jobs`: a function that returns the inputs of many jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    TaskDecorator,
    task_decorator_factory,  # pyright: ignore[reportUnknownVariableType]
)

from noukai_airflow.decorators.noukai import call_function, share_arguments
from noukai_airflow.exceptions import without_frames
from noukai_airflow.operators.batch import NoukaiRunJobsOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from noukai_airflow._batch_inputs import BatchInputs


class NoukaiJobsDecoratedOperator(DecoratedOperator, NoukaiRunJobsOperator):
    """Calls a function that returns the inputs of many jobs, and runs the jobs."""

    custom_operator_name: str = "@task.noukai_jobs"
    overwrite_rtif_after_execution: bool = True
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in NoukaiRunJobsOperator.template_fields if name != "inputs"),
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(inputs=(), **kwargs)  # pyright: ignore[reportUnknownMemberType]

    @without_frames
    def execute(self, context: Context) -> Any:
        """Call the function, and run a job for each of the inputs that it returns."""
        share_arguments(self, context)
        return NoukaiRunJobsOperator.execute(self, context)

    @without_frames
    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume the task, with another call of the function."""
        share_arguments(self, context)
        return super().resume_execution(next_method, next_kwargs, context)

    def _batch_inputs(self, context: Context) -> BatchInputs:
        self.inputs = call_function(self, context)
        return super()._batch_inputs(context)


def noukai_jobs_task(
    python_callable: Callable[..., Any] | None = None, *, multiple_outputs: bool = False, **kwargs: Any
) -> TaskDecorator:
    """Make a task that runs a Noukai job for each of the inputs that the decorated function returns.

    The function returns what the argument `inputs` of `NoukaiRunJobsOperator` may be; a generator function
    yields the inputs one by one. It runs on the worker, again in each retry and after each deferral, and must
    give the same inputs in the same order.

    Args:
        python_callable: The function.
        multiple_outputs: Whether each key of the manifest becomes a separate XCom. Needs an `output_path`.
        **kwargs: The arguments of `NoukaiRunJobsOperator` other than `inputs`.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=multiple_outputs,
        decorated_operator_class=NoukaiJobsDecoratedOperator,
        **kwargs,
    )
