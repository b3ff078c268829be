"""What the events of a run's live trace say. No I/O."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

from noukai_core._api.endpoints import trace_step
from noukai_core._api.parsing import HttpResponse, object_of
from noukai_core._text import one_line
from noukai_core.errors import APIError
from noukai_core.models import TraceStep

_STATUSES = {"step_started": "running", "step_completed": "completed", "step_error": "failed"}
_LONGEST_ID = 256


class ServerEvent(NamedTuple):
    """An event as it was received; `type` is its field `event`."""

    type: str
    data: str
    id: str


class StepEvent(NamedTuple):
    """An event that says something of a step: the step, and which one of a loop it is, if that is known."""

    step: TraceStep
    loop: Hashable = None


def event_id(event: ServerEvent) -> str | None:
    """Return the id of an event, if it has one that can be sent back in a header."""
    name = event.id
    return name if name and name.isascii() and name.isprintable() and len(name) <= _LONGEST_ID else None


def ends_run(event: ServerEvent) -> bool:
    """Tell whether the run has completed. There is no event for another end."""
    return event.type == "flow_completed"


def read_step(event: ServerEvent, key: str) -> StepEvent | None:
    """Return what an event says of a step, without the key; `None` for other and for invalid events."""
    if event.type and event.type not in _STATUSES:
        return None
    try:
        value = object_of(HttpResponse(200, {}, event.data.encode()).hiding(key), "Reading an event")
    except APIError:
        return None
    status = _STATUSES.get(event.type or str(value.get("eventType")))
    if status is None:
        return None
    step = trace_step(value)
    if step.id is None:
        return None
    return StepEvent(step.model_copy(update={"status": status}), _loop(value.get("loopIndex")))


def _loop(index: Any) -> Hashable:
    return one_line(index, 100) if isinstance(index, str) else index if isinstance(index, int) else None
