"""Read an input of a batch."""

from __future__ import annotations

from noukai_core import _validation, job_request
from noukai_core._engine.batch_options import BatchOptions
from noukai_core._engine.effects import Given
from noukai_core._validation import FlowPath, refused
from noukai_core.job_request import JobRequest


def request_of(given: Given, flow: FlowPath, options: BatchOptions) -> JobRequest:
    """Return what is to be submitted for an input.

    Args:
        given: The input.
        flow: The flow of the batch.
        options: How the batch runs.

    Raises:
        InvalidInputError: It is no input, or not one that these options allow.
    """
    name = f"inputs[{given.index}]"
    request = job_request.request_of(
        given.value, str(flow), name, version=options.version, trace=options.trace
    )
    _validation.check_input_key(request.key, f"{name}: key")
    if options.max_cost_usd is not None and request.trace is not True:
        raise refused(f"{name} is not traced, so its cost stays unknown: max_cost_usd needs trace=True")
    return request
