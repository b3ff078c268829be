"""`@task.noukai`: a function that returns the inputs of a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    TaskDecorator,
    determine_kwargs,
    task_decorator_factory,  # pyright: ignore[reportUnknownVariableType]
)

from noukai_airflow.exceptions import NoukaiPermanentException, without_frames
from noukai_airflow.operators.noukai import NoukaiRunJobOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from noukai_core import JobRequest


_INPUTS = ("message", "parameters", "block_overrides", "version", "session_id")


# What this package reads in the context, and not every Airflow has there.
_OPTIONAL = ("loop", "task_state_store", "task_reschedule_count")


def share_arguments(operator: DecoratedOperator, context: Context) -> None:
    """Let a `map_index_template` name the arguments of the function, as in other decorated tasks."""
    values = cast("dict[str, Any]", context)
    for name, value in operator.op_kwargs.items():
        if name not in _OPTIONAL:
            values.setdefault(name, value)


def call_function(operator: DecoratedOperator, context: Context) -> Any:
    """Call the decorated function with the arguments of the task, and return what it returns."""
    function: Callable[..., Any] = operator.python_callable  # pyright: ignore
    # An argument may have the name of something in the context, which the task still needs.
    values: Any = {**context, **operator.op_kwargs}
    kwargs = determine_kwargs(function, operator.op_args, values)
    return function(*operator.op_args, **kwargs)


class NoukaiDecoratedOperator(DecoratedOperator, NoukaiRunJobOperator):
    """Calls a function that returns the inputs of a job, and runs the job."""

    custom_operator_name: str = "@task.noukai"
    overwrite_rtif_after_execution: bool = True
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *NoukaiRunJobOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **NoukaiRunJobOperator.template_fields_renderers,
    }

    @without_frames
    def execute(self, context: Context) -> Any:
        """Call the function, and run the job with the inputs that it returns."""
        share_arguments(self, context)
        return NoukaiRunJobOperator.execute(self, context)

    @without_frames
    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume the task, without another call of the function."""
        share_arguments(self, context)
        return super().resume_execution(next_method, next_kwargs, context)

    def _request(self, context: Context) -> JobRequest:
        self._set_inputs(call_function(self, context))
        return super()._request(context)

    def _set_inputs(self, returned: object) -> None:
        """Set the inputs of the job to what the function returned."""
        if isinstance(returned, str):
            returned = {"message": returned}
        if not isinstance(returned, Mapping):
            raise NoukaiPermanentException(
                f"The function of task {self.task_id!r} returned {type(returned).__name__}, but must return "
                f"the message as a string, or a dict with some of {', '.join(_INPUTS)}"
            )
        inputs = cast("Mapping[str, Any]", returned)
        if unknown := sorted(str(name) for name in inputs if name not in _INPUTS):
            raise NoukaiPermanentException(
                f"The function of task {self.task_id!r} returned {', '.join(unknown)}, but a job's inputs "
                f"are {', '.join(_INPUTS)}; inputs of the flow belong in 'parameters'"
            )
        # They stay, since Airflow shows them as the task's rendered fields, but no later call submits them.
        for name, value in {**self._declared, **inputs}.items():
            setattr(self, name, value)

    @cached_property
    def _declared(self) -> dict[str, Any]:
        """The inputs that the decorator has."""
        return {name: getattr(self, name) for name in _INPUTS}


def noukai_task(
    python_callable: Callable[..., Any] | None = None, *, multiple_outputs: bool = False, **kwargs: Any
) -> TaskDecorator:
    """Make a task that runs a Noukai job with the inputs that the decorated function returns.

    The function returns the message as a string, or a dict with some of `message`, `parameters`,
    `block_overrides`, `version` and `session_id`. It runs on the worker, just before the submission, and not
    again after a deferral. A `map_index_template` may name the keyword arguments of its call, such as
    `{{ text }}`.

    Args:
        python_callable: The function.
        multiple_outputs: Whether each key of the flow's output becomes a separate XCom. The return value and
            the annotation of the function do not matter.
        **kwargs: The arguments of `NoukaiRunJobOperator`.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=multiple_outputs,
        decorated_operator_class=NoukaiDecoratedOperator,
        **kwargs,
    )
