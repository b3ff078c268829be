"""The inputs of one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from noukai_core._validation import Version


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
