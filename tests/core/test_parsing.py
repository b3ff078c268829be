"""The tolerance in reading what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from noukai_core import BadRequestError, JobState
from tests.core.scripted_server import FLOW, ScriptedServer, respond, state

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient


@pytest.mark.parametrize(
    "body",
    [
        {"executionId": "job-9", "status": "started", "flowId": "f", "blockCount": 2},
        {"executionId": "job-9"},
        {"execution_id": "job-9", "state": "pending"},
        {"id": "job-9", "status": "QUEUED", "unheard": [1]},
    ],
    ids=["as documented", "id alone", "snake case", "reference page"],
)
@pytest.mark.parametrize("code", [200, 201, 202])
def test_a_submission_needs_the_id_alone(
    scripted: MakeClient, server: ScriptedServer, body: dict[str, Any], code: int
) -> None:
    """Any 2xx that names the job is an accepted submission, in either spelling, whatever else it contains."""
    server.on("submit", respond(code, json=body))
    job = scripted().flow(FLOW).job(message="hello")
    assert (job.id, job.accepted.id, job.accepted.state) == ("job-9", "job-9", "pending")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("started", JobState.PENDING),
        ("queued", JobState.PENDING),
        ("pending", JobState.PENDING),
        ("Running", JobState.RUNNING),
        ("COMPLETED", JobState.COMPLETED),
        ("failed", JobState.FAILED),
        ("cancelled", JobState.CANCELLED),
    ],
)
@pytest.mark.parametrize("field", ["status", "state"])
def test_states_are_read_from_either_field_in_any_case(
    scripted: MakeClient, server: ScriptedServer, field: str, word: str, expected: JobState
) -> None:
    """`status` or `state`, upper or lower case, started and queued as pending: one vocabulary comes out."""
    server.on("poll", respond(json={"executionId": "job-1", field: word}))
    assert scripted().flow(FLOW).attach("job-1").status().state is expected


@pytest.mark.parametrize(
    "names",
    [("createdAt", "startedAt", "completedAt"), ("created_at", "started_at", "completed_at")],
    ids=["camel", "snake"],
)
def test_times_and_progress_are_read_in_both_spellings(
    scripted: MakeClient, server: ScriptedServer, names: tuple[str, str, str]
) -> None:
    """The optional times come out under the reference's names, and so does the progress."""
    times = ["2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", "2026-01-01T00:00:09Z"]
    server.on(
        "poll", state("completed", **dict(zip(names, times, strict=True)), progress={"done": 3}, result="x")
    )
    status = scripted().flow(FLOW).attach("job-1").status()
    assert [status.created_at, status.started_at, status.completed_at] == times
    assert status.progress == {"done": 3}


@pytest.mark.parametrize(
    "output", ["text", 0, False, "", [], {}, {"output": 1, "more": 2}, None, 1.5, [1, {"a": None}]]
)
def test_the_result_is_the_bare_output_of_the_flow(
    scripted: MakeClient, server: ScriptedServer, output: Any
) -> None:
    """Any JSON value of the flow is the output, even a falsy one."""
    server.on("poll", state("completed", result=output))
    assert scripted().flow(FLOW).attach("job-1").wait(timeout_ms=5_000).output == output


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        ("out of words", "out of words"),
        ({"code": "MODEL_DOWN", "message": "out of words"}, "out of words"),
        ({"code": "MODEL_DOWN", "message": "out of words"}, "MODEL_DOWN"),
    ],
    ids=["text", "object's message", "object's code"],
)
def test_a_failed_jobs_error_may_be_text_or_an_object(
    scripted: MakeClient, server: ScriptedServer, error: Any, reported: str
) -> None:
    """Both forms of a job's error come out as text that keeps the server's words."""
    server.on("poll", state("failed", error=error))
    status = scripted().flow(FLOW).attach("job-1").status()
    assert isinstance(status.error, str)
    assert reported in status.error


def test_a_failed_job_without_a_reason_is_failed_all_the_same(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """A null error neither hides the failure nor breaks the reading."""
    server.on("poll", state("failed", error=None))
    assert scripted().flow(FLOW).attach("job-1").status().state is JobState.FAILED


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        ({"json": {"detail": {"code": "MISSING_MESSAGE", "message": "say something"}}}, "say something"),
        ({"json": {"detail": "say something"}}, "say something"),
        (
            {"json": {"detail": [{"loc": ["body", "message"], "msg": "say something", "type": "missing"}]}},
            "say something",
        ),
        ({"json": {"error": "say something"}}, "say something"),
        ({"json": {"error": {"code": "X", "message": "say something"}}}, "say something"),
        ({"json": {"message": "say something"}}, "say something"),
        ({"text": "say something"}, "say something"),
        ({"json": ["say something"]}, ""),
        ({"json": {"detail": {"code": 7, "message": {"odd": True}}}}, ""),
        ({"json": {"detail": 7}}, ""),
        ({"json": {"error": True}}, ""),
        ({"text": "<html><body>Bad Request</body></html>"}, ""),
        ({"content": b"\xff\xfe\x00"}, ""),
        ({"content": b""}, ""),
    ],
    ids=[
        "object",
        "text",
        "list",
        "error",
        "error object",
        "message",
        "plain",
        "a list",
        "odd types",
        "a number",
        "a bool",
        "html",
        "bytes",
        "none",
    ],
)
def test_an_error_body_of_any_form_is_read(
    scripted: MakeClient, server: ScriptedServer, content: dict[str, Any], reported: str
) -> None:
    """Every form of error body gives the same error with the server's words."""
    server.on("submit", respond(400, headers={"X-Request-ID": "req-7"}, **content))
    with pytest.raises(BadRequestError) as caught:
        scripted().flow(FLOW).job(message="hello")
    assert reported in str(caught.value)
    assert (caught.value.status_code, caught.value.request_id) == (400, "req-7")
    assert "400" in str(caught.value)
    assert "req-7" in str(caught.value)
    assert len(server.requests) == 1


def test_a_long_error_body_is_reported_in_part(scripted: MakeClient, server: ScriptedServer) -> None:
    """A proxy's page of a megabyte does not become a log line of a megabyte."""
    server.on("submit", respond(400, text="x" * 1_000_000))
    with pytest.raises(BadRequestError) as caught:
        scripted().flow(FLOW).job(message="hello")
    assert len(str(caught.value)) < 5_000


def test_an_error_without_a_request_id_is_an_error_all_the_same(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """The request id is optional."""
    server.on("submit", respond(400, json={"detail": "no"}))
    with pytest.raises(BadRequestError) as caught:
        scripted().flow(FLOW).job(message="hello")
    assert caught.value.request_id is None
