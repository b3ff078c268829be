"""Every call of the API: its request, and how its response is read. No I/O.

A new call is one more function here that returns a `Call`; both drivers can then send it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar
from urllib.parse import quote, urlencode

from noukai_core import _validation
from noukai_core._amounts import count_or_none, dollars_or_none, number_or_none
from noukai_core._api.job_ids import canonical_job_id
from noukai_core._api.parsing import (
    TEXT_LENGTH,
    HttpResponse,
    beginning_of,
    error_of,
    is_own_404,
    is_web_page,
    job_error,
    list_of,
    malformed,
    mapping_of,
    object_of,
    too_large,
)
from noukai_core._text import one_line, shortened
from noukai_core._validation import FlowPath, is_list, is_mapping
from noukai_core.errors import (
    APIError,
    CancelUnsupportedError,
    FlowNotFoundError,
    InvalidInputError,
    JobNotFoundError,
)
from noukai_core.models import (
    FAILED_STEP,
    ExecuteResult,
    JobAccepted,
    JobState,
    JobStatus,
    KeyInfo,
    RunTrace,
    TraceStep,
)
from noukai_core.runs import FlowRun

T = TypeVar("T")

_TIME_LENGTH = 64
_MOST_STEPS = 10_000

# Of a response whose status alone is read; a longer one costs its connection.
_UNREAD_BYTES = 64 * 1024

PAGE_SIZE = 100
"""The most runs that the server lists at a time. It documents a `cursor` for more, and ignores it."""

_OTHER_WORDS = {
    "started": JobState.PENDING,
    "queued": JobState.PENDING,
    "succeeded": JobState.COMPLETED,
    "error": JobState.FAILED,
    "canceled": JobState.CANCELLED,
}
"""Words for a state beside the five."""

_MORE = ("nextCursor", "next_cursor", "nextPageToken", "next_page_token", "next", "hasMore", "has_more")
"""What a list says that is only a page of one."""

_STATES = {state.value: state for state in JobState}


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how its response is read.

    `read` returns what the response says, or raises the `APIError` that it stands for.
    `operation` begins the message of that error. `cut_at` is how many bytes of the body are read, if its
    beginning is enough. `on_send` is called when the request goes out: it may have waited for its turn.
    """

    method: str
    path: str
    operation: str
    read: Callable[[HttpResponse], T] = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes | None = field(default=None, repr=False)
    job_id: str | None = None
    submits: bool = False
    cut_at: int | None = None
    on_send: Callable[[], None] | None = field(default=None, repr=False)


def outcome(call: Call[T], response: HttpResponse | APIError, key: str) -> T | APIError:
    """Return what the response to a call with this key says, or the error that it stands for."""
    if isinstance(response, APIError):
        return response
    try:
        return call.read(response.hiding(key))
    except APIError as error:
        return error.with_traceback(None)


class Execution(NamedTuple):
    """What a session's list says of one execution; `id` is `None` when it cannot be read."""

    id: str | None
    slug: str | None
    trigger: str | None
    started_at: str | None
    state: str | None = None


UNREADABLE = Execution(None, None, None, None)
"""An execution of which nothing can be read."""


def submit(flow: FlowPath, version: int | None, body: bytes, headers: Mapping[str, str]) -> Call[JobAccepted]:
    """Submit a job. The version stands in the path only: none for production, `v0` for the draft."""
    operation = f"Submitting a job of {flow}"

    def read(response: HttpResponse) -> JobAccepted:
        value = object_of(response, operation, missing=FlowNotFoundError)
        job_id = _id(value)
        if job_id is None:
            raise malformed(response, operation, "has no job id")
        flow_id = _text(value, "flowId", "flow_id")
        return JobAccepted(id=job_id, state=_state(value) or JobState.PENDING, flow_id=flow_id)

    segment = "" if version is None else f"/v{version}"
    path = f"{_flow(flow)}{segment}/jobs"
    return Call("POST", path, operation, read, headers={**headers}, body=body, submits=True)


def status(flow: FlowPath, job_id: str, state_bytes: int | None = None) -> Call[JobStatus]:
    """Poll a job.

    Args:
        flow: Its flow.
        job_id: The job.
        state_bytes: If the state is all that is wanted: how many bytes of the response are read for it.
    """
    operation = f"Polling job {job_id} of {flow}"
    state_only = state_bytes is not None

    def read(response: HttpResponse) -> JobStatus:
        more = False
        if state_only:
            value, more = beginning_of(response, operation, job_id, missing=JobNotFoundError)
        else:
            value = object_of(response, operation, job_id, missing=JobNotFoundError)
        if _is_another_job(_any(value, "executionId", "execution_id"), job_id):
            raise malformed(response, operation, "is about another job", job_id)
        state = _state(value)
        if state is None and more:
            raise too_large(response, operation, "does not begin with the state", job_id)
        if state is None:
            raise malformed(response, operation, "has no state", job_id)
        fields = {
            "result": None if state_only else _result(state, value),
            "error": job_error(value.get("error")),
            "created_at": _time(value, "created_at", "createdAt"),
            "started_at": _time(value, "started_at", "startedAt"),
            "completed_at": _time(value, "completed_at", "completedAt"),
            "progress": _progress(value.get("progress")),
            "state_only": state_only or None,
        }
        # A waiting job keeps its status, and pydantic half a kilobyte more for fields that it is given.
        reported: dict[str, Any] = {name: field for name, field in fields.items() if field is not None}
        return JobStatus(id=job_id, state=state, **reported)

    return Call("GET", _job(flow, job_id), operation, read, job_id=job_id, cut_at=state_bytes)


def cancel(flow: FlowPath, job_id: str) -> Call[bool]:
    """Cancel a job, and tell whether the server took that up: not if the job had already ended.

    No source names this route. It is assumed by analogy, and here is the only place that knows it.
    """
    operation = f"Cancelling job {job_id} of {flow}"

    def read(response: HttpResponse) -> bool:
        if response.ok or response.status_code in (409, 410):
            if is_web_page(response):
                raise malformed(response, operation, "is a web page, such as a login page", job_id)
            return response.ok
        error = error_of(response, operation, job_id, missing=JobNotFoundError)
        if _no_cancel_route(error):
            raise CancelUnsupportedError(
                f"{operation}: this server has no way to cancel a job (HTTP {response.status_code}). "
                "The job was left running: stop it in the Noukai console.",
                status_code=response.status_code,
                code=error.code,
                request_id=error.request_id,
                job_id=job_id,
            )
        raise error

    path = f"{_job(flow, job_id)}/cancel"
    return Call("POST", path, operation, read, job_id=job_id, cut_at=_UNREAD_BYTES)


_UNKNOWN_JOB = ("JOB_NOT_FOUND", "RUN_NOT_FOUND", "FLOW_NOT_FOUND")


def _no_cancel_route(error: APIError) -> bool:
    if error.status_code == 404:
        return not error.retryable and error.code not in _UNKNOWN_JOB
    return error.status_code in (405, 501)


def session(session_id: str) -> Call[tuple[Execution, ...]]:
    """List what was submitted under a session; nothing when the server does not know it (yet)."""
    operation = f"Looking up what was submitted as {session_id}"

    def read(response: HttpResponse) -> tuple[Execution, ...]:
        if is_own_404(response):
            return ()
        value = object_of(response, operation)
        if _is_another_session(_text(value, "sessionId", "session_id"), session_id):
            raise malformed(response, operation, "is about another session")
        listed: object = value.get("executions")
        if not is_list(listed):
            raise malformed(response, operation, "has no list of executions")
        # What a list does not show, or did not show when a cache stored it, may be a job.
        whole = response.age == 0 and not _is_cut(value, len(listed))
        return (*_executions(listed), *(() if whole else (UNREADABLE,)))

    return Call("GET", f"seq/sessions/{_segment(session_id)}", operation, read)


def verify_key() -> Call[KeyInfo]:
    """Check the key; this does not count as a request."""
    operation = "Checking the API key"

    def read(response: HttpResponse) -> KeyInfo:
        value = object_of(response, operation)
        return KeyInfo(
            org=_name(value, "org", "organization", "organisation"),
            project=_name(value, "project"),
            environment=_name(value, "environment", "env"),
        )

    return Call("GET", "keys/verify", operation, read)


def trace(flow: FlowPath, job_id: str) -> Call[RunTrace]:
    """Read how a run went. Some deployments refuse this to API keys."""
    operation = f"Reading the trace of job {job_id} of {flow}"

    def read(response: HttpResponse) -> RunTrace:
        value = object_of(response, operation, job_id, missing=JobNotFoundError)
        steps = list_of(value.get("steps"))
        if len(steps) > _MOST_STEPS:
            raise too_large(response, operation, "has too many steps", job_id)
        run = mapping_of(value.get("flowRun") or value.get("flow_run"))
        return RunTrace(
            status=_state(run),
            duration_ms=number_or_none(_any(run, "durationMs", "duration_ms")),
            steps=tuple(trace_step(mapping_of(step)) for step in steps),
        )

    return Call("GET", f"{_flow(flow)}/runs/{_segment(job_id)}/trace", operation, read, job_id=job_id)


def stream(flow: FlowPath, job_id: str, last_event_id: str | None) -> Call[NoReturn]:
    """Receive the events of a run. What is read here is a response that is not a stream of events.

    Args:
        flow: Its flow.
        job_id: The job.
        last_event_id: The last event that was received, for servers that can resume after it.
    """
    operation = f"Following job {job_id} of {flow}"

    def read(response: HttpResponse) -> NoReturn:
        if not response.ok:
            raise error_of(response, operation, job_id, missing=JobNotFoundError)
        raise malformed(response, operation, "is not a stream of events", job_id)

    headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    path = f"{_flow(flow)}/runs/{_segment(job_id)}/trace/stream"
    return Call("GET", path, operation, read, headers=headers, job_id=job_id, cut_at=TEXT_LENGTH)


def runs(flow_id: str, state: JobState | None = None, limit: int = PAGE_SIZE) -> Call[tuple[FlowRun, ...]]:
    """List the newest runs of a flow, the newest first, of one state or of all."""
    operation = f"Listing the runs of flow {flow_id}"

    def read(response: HttpResponse) -> tuple[FlowRun, ...]:
        listed: object = object_of(response, operation, missing=FlowNotFoundError).get("runs")
        if not is_list(listed):
            raise malformed(response, operation, "has no list of runs")
        found = (_run(mapping_of(entry), flow_id) for entry in listed)
        return tuple(run for run in found if run is not None)

    query = {"flow_id": flow_id, "limit": limit} | ({} if state is None else {"status": state.value})
    return Call("GET", f"flow-runs?{urlencode(query)}", operation, read)


def run(run_id: str) -> Call[FlowRun]:
    """Read the state of one run, from its trace. Some deployments refuse this to API keys."""
    operation = f"Reading run {run_id}"

    def read(response: HttpResponse) -> FlowRun:
        value = object_of(response, operation, run_id, missing=JobNotFoundError)
        described = mapping_of(value.get("flowRun") or value.get("flow_run"))
        found = _run({"id": run_id, **described}, "")
        if found is None:
            raise malformed(response, operation, "has no state", run_id)
        return found

    return Call("GET", f"flow-runs/{_segment(run_id)}/trace", operation, read, job_id=run_id)


def _run(value: Mapping[str, Any], flow_id: str) -> FlowRun | None:
    """Read one run; `None` if it cannot be read."""
    run_id, state = _id(value), _state(value)
    if run_id is None or state is None:
        return None
    return FlowRun(
        id=run_id,
        flow_id=_text(value, "flowId", "flow_id") or flow_id,
        state=_STATES.get(state, state),
        trigger=_text(value, "triggerType", "trigger_type"),
        created_at=_time(value, "createdAt", "created_at"),
        started_at=_time(value, "startedAt", "started_at"),
        completed_at=_time(value, "completedAt", "completed_at"),
    )


def _flow(flow: FlowPath) -> str:
    return "seq/" + "/".join(_segment(part) for part in flow)


def _job(flow: FlowPath, job_id: str) -> str:
    return f"{_flow(flow)}/jobs/{_segment(job_id)}"


def _segment(text: str) -> str:
    return quote(text, safe="")


def _id(value: Mapping[str, Any]) -> str | None:
    for name in ("executionId", "execution_id", "jobId", "job_id", "id"):
        found = value.get(name)
        if isinstance(found, int) and not isinstance(found, bool):
            found = str(found)
        if isinstance(found, str):
            try:
                return _validation.job_id(found)
            except InvalidInputError:
                continue
    return None


def _state(value: Mapping[str, Any]) -> str | None:
    for name in ("status", "state"):
        word = value.get(name)
        if isinstance(word, str) and word[:1000].strip():
            state = one_line(word, 100).lower()
            return _OTHER_WORDS.get(state, state)
    return None


def _result(state: str, value: Mapping[str, Any]) -> ExecuteResult | None:
    output = value.get("result")
    if output is None and state != JobState.COMPLETED:
        return None
    return ExecuteResult(output=output)


def _progress(value: object) -> dict[str, Any] | None:
    if value is None:
        return None
    kept: Any = shortened(value, TEXT_LENGTH)
    return dict(kept) if is_mapping(kept) else {"progress": kept}


def _is_another_job(named: object, job_id: str) -> bool:
    """Tell whether a response names another job. A boolean or a structure names none."""
    if isinstance(named, bool) or not isinstance(named, str | int):
        return False
    return canonical_job_id(one_line(str(named))) != canonical_job_id(job_id)


def _is_another_session(named: str | None, session_id: str) -> bool:
    """Tell whether a list names another session. What is no UUID may be the server's own id for this one."""
    try:
        return named is not None and uuid.UUID(named) != uuid.UUID(session_id)
    except ValueError:
        return False


def _is_cut(value: Mapping[str, Any], shown: int) -> bool:
    """Tell whether a list has more than the response shows. No page is documented, in whichever form."""
    for said in (value, mapping_of(value.get("pagination")), mapping_of(value.get("meta"))):
        total = count_or_none(_any(said, "total", "totalCount", "total_count"))
        if (total is not None and total > shown) or any(said.get(name) for name in _MORE):
            return True
    return False


def _executions(listed: Sequence[Any]) -> Iterator[Execution]:
    for entry in listed:
        value = mapping_of(entry)
        yield Execution(
            _id(value),
            _text(value, "slug"),
            _text(value, "triggerType", "trigger_type"),
            _text(value, "startedAt", "started_at"),
            _state(value),
        )


def trace_step(value: Mapping[str, Any]) -> TraceStep:
    """Read one step of a run, from its trace or from an event."""
    tokens, cost = value.get("tokens"), _any(value, "costUsd", "cost_usd")
    total = mapping_of(tokens).get("total", tokens)
    status = (_text(value, "status") or "").lower() or None
    cost_usd = dollars_or_none(cost)
    return TraceStep(
        id=_text(value, "stepId", "step_id"),
        status=status,
        error=job_error(_any(value, "error", "errorMessage", "error_message")),
        attempt=count_or_none(value.get("attempt")),
        duration_ms=number_or_none(_any(value, "durationMs", "duration_ms")),
        model=_text(value, "modelUsed", "model_used"),
        tokens=count_or_none(total),
        cost_usd=cost_usd,
        cost_unknown=cost_usd is None and (cost is not None or _used_model(value, status)),
    )


def _used_model(value: Mapping[str, Any], status: str | None) -> bool:
    """Tell whether a step may have used a model, which costs. What cannot be read may have."""
    tokens = value.get("tokens")
    if any(mapping_of(tokens).values()) if is_mapping(tokens) else tokens:
        return True
    if status in FAILED_STEP:
        return False  # a provider that refuses a request charges nothing
    return not value or bool(_any(value, "modelUsed", "model_used"))


def _any(value: Mapping[str, Any], *names: str) -> Any:
    return next((value[name] for name in names if value.get(name) is not None), None)


def _text(value: Mapping[str, Any], *names: str) -> str | None:
    found = _any(value, *names)
    return one_line(found) if isinstance(found, str) else None


def _time(value: Mapping[str, Any], *names: str) -> str | None:
    found = _any(value, *names)
    return one_line(found, _TIME_LENGTH) if isinstance(found, str) else None


def _name(value: Mapping[str, Any], *names: str) -> str | None:
    """Read a name that may come bare, with a suffix, or inside an object."""
    for name in names:
        found = _any(value, name, f"{name}Slug", f"{name}_slug", f"{name}Name", f"{name}_name")
        found = _any(mapping_of(found), "slug", "name", "id") or found
        if isinstance(found, str):
            return one_line(found)
    return None
