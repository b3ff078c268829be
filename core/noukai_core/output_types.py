"""The outputs of jobs as instances of a pydantic model, and such instances as JSON values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from noukai_core._text import one_line
from noukai_core.errors import InvalidInputError, JobOutputInvalidError

if TYPE_CHECKING:
    from pydantic import BaseModel

Model = TypeVar("Model", bound="BaseModel")

_NAMED_FIELDS = 5

# Pydantic's own words for these quote the output.
_WITHOUT_OUTPUT = {
    "union_tag_invalid": "Input tag does not match any of the expected tags",
    "uuid_parsing": "Input should be a valid UUID",
}
_WHOLE_OUTPUT = "the whole output"


def check_output_type(output_type: object, *, defined: bool = True) -> type[BaseModel] | None:
    """Check the argument `output_type`.

    Args:
        output_type: The argument.
        defined: Whether all that the model refers to is defined by now. A model may name one that follows it
            in its module.

    Returns:
        The argument.

    Raises:
        InvalidInputError: It is neither a pydantic model nor `None`, or one that cannot be built: every
            output would be invalid.
    """
    if output_type is None:
        return None
    from pydantic import BaseModel

    shown = one_line(repr(output_type), 100)
    if not (isinstance(output_type, type) and issubclass(output_type, BaseModel)) or output_type is BaseModel:
        raise InvalidInputError(
            f"output_type is {shown}, but must be a pydantic model: a class that is derived from BaseModel"
        )
    if defined:
        _build(output_type)
    return output_type


def _build(model: type[BaseModel]) -> None:
    try:
        model.model_rebuild()
    except Exception as error:
        reason = one_line(str(error).partition("\n")[0])
        raise InvalidInputError(
            f"output_type {model.__name__} cannot be built: {reason}. What its fields refer to must be "
            "imported when the program runs, and not only under TYPE_CHECKING"
        ) from None


def typed_output(output: Any, output_type: type[Model], *, job_id: str, flow: str) -> Model:
    """Return the output of a job as an instance of a model.

    Args:
        output: The output, as JSON values.
        output_type: The model.
        job_id: The job.
        flow: Its flow, as `org/project/slug`.

    Raises:
        JobOutputInvalidError: The output is not what the model describes. The message names the fields (of a
            dict, its keys), and shows no values unless a validator puts them into its `ValueError`.
    """
    from pydantic import ValidationError

    try:
        # As JSON, in which even a strict model accepts a date or an enum as text. Half of a surrogate pair
        # cannot be encoded, and is replaced.
        return output_type.model_validate_json(
            json.dumps(output, ensure_ascii=False).encode(errors="replace")
        )
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        reasons = {
            ".".join(str(part) for part in problem["loc"]) or _WHOLE_OUTPUT: _WITHOUT_OUTPUT.get(
                problem["type"], problem["msg"]
            )
            for problem in problems
        }
    except Exception as error:
        # A validator may raise anything, and its text may hold values of the output.
        reasons = {_WHOLE_OUTPUT: f"a validator raised {type(error).__name__}"}
    named = [f"{field}: {reason}" for field, reason in list(reasons.items())[:_NAMED_FIELDS]]
    if (rest := len(reasons) - _NAMED_FIELDS) > 0:
        named.append(f"and {rest:,} more")
    reason = f"the output is no {output_type.__name__}: {one_line('; '.join(named))}"
    raise JobOutputInvalidError(
        f"Noukai job {job_id} of {flow}: {reason}",
        job_id=job_id,
        fields=tuple(one_line(field, 100) for field in reasons),
    )


def json_output(output: Any, *, job_id: str) -> Any:
    """Return the output of a job as JSON values; an instance of a model by its aliases, with its defaults.

    Args:
        output: The output: JSON values, or an instance of a model.
        job_id: The job.

    Raises:
        JobOutputInvalidError: It is an instance of a model that cannot be written as JSON.
    """
    dump = getattr(output, "model_dump", None)
    try:
        # Pydantic's warnings show values of the output.
        return output if dump is None else dump(mode="json", by_alias=True, warnings=False)
    except Exception as error:
        # Its text may hold values of the output.
        raise JobOutputInvalidError(
            f"Noukai job {job_id}: the output cannot be written as JSON: "
            f"{type(output).__name__}.model_dump raised {type(error).__name__}",
            job_id=job_id,
        ) from None
