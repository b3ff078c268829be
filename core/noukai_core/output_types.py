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
_WHOLE_OUTPUT = "the whole output"


def check_output_type(output_type: object) -> type[BaseModel] | None:
    """Check the argument `output_type`.

    Args:
        output_type: The argument.

    Returns:
        The argument.

    Raises:
        InvalidInputError: It is neither a pydantic model nor `None`.
    """
    if output_type is None:
        return None
    from pydantic import BaseModel

    shown = one_line(repr(output_type), 100)
    if isinstance(output_type, type) and issubclass(output_type, BaseModel):
        return output_type
    raise InvalidInputError(
        f"output_type is {shown}, but must be a pydantic model: a class that is derived from BaseModel"
    )


def typed_output(output: Any, output_type: type[Model], *, job_id: str, flow: str) -> Model:
    """Return the output of a job as an instance of a model.

    Args:
        output: The output, as JSON values.
        output_type: The model.
        job_id: The job.
        flow: Its flow, as `org/project/slug`.

    Raises:
        JobOutputInvalidError: The output is not what the model describes. The message names the fields, and
            not their values.
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
            ".".join(str(part) for part in problem["loc"]) or _WHOLE_OUTPUT: problem["msg"]
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
    """Return the output of a job as JSON values.

    Args:
        output: The output: JSON values, or an instance of a model.
        job_id: The job.

    Raises:
        JobOutputInvalidError: It is an instance of a model that cannot be written as JSON.
    """
    dump = getattr(output, "model_dump", None)
    try:
        return output if dump is None else dump(mode="json")
    except Exception as error:
        # Its text may hold values of the output.
        raise JobOutputInvalidError(
            f"Noukai job {job_id}: the output cannot be written as JSON: "
            f"{type(output).__name__}.model_dump raised {type(error).__name__}",
            job_id=job_id,
        ) from None
