"""The inputs of one job, and how an input of a batch gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from noukai_core import _validation
from noukai_core._text import one_line
from noukai_core._validation import Version, refused
from noukai_core.errors import InvalidInputError

_INPUT_FIELDS = ("message", "parameters", "block_overrides", "key")


@dataclass(frozen=True, slots=True)
class JobRequest:
    """The inputs of one job. They are checked when the job is submitted.

    Attributes:
        flow: The flow as `org/project/slug`, or only its slug if the client has an organisation and a
            project.
        message: The flow's input. Required unless `parameters` is set.
        parameters: Named inputs, as JSON values.
        block_overrides: Settings for individual steps, by step id.
        version: `"production"`, `"draft"` or the number of a published version.
        trace: Whether the run is traced.
        session_id: A UUID of your own that groups jobs. A submission with one cannot be recovered after an
            ambiguous outcome.
        callback_url: A public https address that Noukai calls when the job has ended.
        callback_events: The events to call it for: `flow.completed`, `flow.failed` or both.
        key: Your own name of this input among many. The outcome carries it; it is not sent.
    """

    flow: str
    message: str | None = None
    parameters: Mapping[str, Any] | None = None
    block_overrides: Mapping[str, Mapping[str, Any]] | None = None
    version: Version = "production"
    trace: bool = False
    session_id: str | UUID | None = None
    callback_url: str | None = None
    callback_events: Sequence[str] | None = None
    key: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `Flow.job` for this job."""
        return {name: getattr(self, name) for name in self.__slots__ if name not in ("flow", "key")}


def body_of(request: JobRequest) -> bytes:
    """Check what a job is submitted with, and return it as the body of the request.

    Raises:
        InvalidInputError: It cannot be submitted.
    """
    return _validation.job_body(
        message=request.message,
        parameters=request.parameters,
        block_overrides=request.block_overrides,
        trace=request.trace,
        callback_url=request.callback_url,
        callback_events=request.callback_events,
    )


def request_of(value: object, flow: str, name: str, *, version: Version, trace: bool) -> JobRequest:
    """Return what an input of a batch submits.

    Args:
        value: A message, a mapping or a `JobRequest`.
        flow: The flow of the batch. It, `version` and `trace` are for an input that is no `JobRequest`.
        name: What errors call the input, such as `inputs[3]`.
        version: `"production"`, `"draft"` or the number of a published version.
        trace: Whether the run is traced.

    Raises:
        InvalidInputError: It is none of these, or a mapping with unknown fields.
    """
    if isinstance(value, JobRequest):
        return value
    if isinstance(value, str):
        return JobRequest(flow, value, version=version, trace=trace)
    if not _validation.is_mapping(value):
        raise refused(
            f"{name} is of type {type(value).__name__}, but must be a message, a mapping or a JobRequest"
        )
    fields = _validation.copied(value, name)
    unknown = sorted(str(field) for field in fields if field not in _INPUT_FIELDS)
    if unknown:
        raise refused(
            f"{name} has {one_line(', '.join(unknown), 200)}, but may be a message, or have "
            f"{', '.join(_INPUT_FIELDS)}; inputs of the flow belong in 'parameters'"
        )
    return JobRequest(flow, **fields, version=version, trace=trace)


def check_input(value: object, name: str) -> None:
    """Check an input of a batch, but for its flow, as its submission does, before anything is paid for.

    Args:
        value: A message, a mapping or a `JobRequest`.
        name: What errors call the input, such as `inputs[3]`.

    Raises:
        InvalidInputError: It is none of these, or cannot be submitted.
    """
    request = request_of(value, "", name, version="production", trace=False)
    try:
        _validation.check_input_key(request.key, "key")
        _validation.version_number(request.version)
        if request.session_id is not None:
            _validation.session_id(request.session_id)
        body_of(request)
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from None
