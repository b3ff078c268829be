"""Which models Prefect can return."""

from __future__ import annotations

from pydantic import BaseModel

from noukai_core import InvalidInputError, output_types


def check_output_type(output_type: object) -> None:
    """Check the argument `output_type`, before anything is paid for.

    Raises:
        InvalidInputError: It is no pydantic model, or one whose instances Prefect cannot return.
    """
    model = output_types.check_output_type(output_type)
    if model is not None and model.__iter__ is not BaseModel.__iter__:
        # Prefect searches what a task returns for futures, and takes a model apart with `dict(…)`.
        raise InvalidInputError(
            f"output_type {model.__name__} has its own __iter__, so Prefect cannot return its instances: "
            "give that method another name"
        )
