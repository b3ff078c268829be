"""Read an input of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from noukai_core import _validation
from noukai_core._engine.batch_options import BatchOptions
from noukai_core._engine.effects import Given
from noukai_core._validation import FlowPath, refused
from noukai_core.job_request import JobRequest

_FIELDS = ("message", "parameters", "block_overrides", "key")


def request_of(given: Given, flow: FlowPath, options: BatchOptions) -> JobRequest:
    """Return what is to be submitted for an input.

    Args:
        given: The input.
        flow: The flow of the batch.
        options: How the batch runs.

    Raises:
        InvalidInputError: It is no input, or not one that these options allow.
    """
    index, value = given.index, given.value
    if isinstance(value, JobRequest):
        request = value
    else:
        if isinstance(value, str):
            arguments: dict[str, Any] = {"message": value}
        elif isinstance(value, Mapping):
            arguments = _validation.copied(cast("Mapping[str, Any]", value), f"inputs[{index}]")
        else:
            raise refused(
                f"inputs[{index}] is a {type(value).__name__}, but must be a message, a mapping or a "
                "JobRequest"
            )
        unknown = sorted(str(name) for name in arguments if name not in _FIELDS)
        if unknown:
            raise refused(
                f"inputs[{index}] has {', '.join(unknown)}, but may be a message, or have "
                f"{', '.join(_FIELDS)}"
            )
        request = JobRequest(str(flow), **arguments, version=options.version, trace=options.trace)
    _validation.check_input_key(request.key, f"the key of inputs[{index}]")
    if options.max_cost_usd is not None and request.trace is not True:
        raise refused(
            f"inputs[{index}] is not traced, so its cost stays unknown: max_cost_usd needs trace=True"
        )
    return request
