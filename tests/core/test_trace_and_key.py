"""What is read from a trace and from a key, whose fields are not documented."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from noukai_core import (
    APIError,
    AuthenticationError,
    JobFailedError,
    JobNotFoundError,
    JobState,
    JobStatus,
    PermanentError,
    PermissionDeniedError,
    ResponseTooLargeError,
)
from tests.core.scripted_server import FLOW, ScriptedServer, rejection, respond

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient


def test_a_trace_adds_up(scripted: MakeClient, server: ScriptedServer) -> None:
    """Tokens and cost of all steps are summed, to the last digit; steps without them cause no error."""
    steps = [
        {"stepId": "draft", "attempt": 1, "status": "completed", "durationMs": 812},
        {"stepId": "check", "tokens": {"prompt": 10, "completion": 5, "total": 15}, "costUsd": "0.1"},
        {"step_id": "polish", "tokens": {"prompt": 1, "completion": 1, "total": 2}, "cost_usd": "0.2"},
        {"stepId": "odd", "durationMs": "long"},
        {"stepId": "busy", "status": "FAILED", "modelUsed": "m-1", "error": "HTTP 529"},
    ]
    server.on(
        "trace",
        respond(json={"flowRun": {"id": "r", "status": "COMPLETED", "durationMs": 1_000}, "steps": steps}),
    )
    trace = scripted().flow(FLOW).attach("job-1").trace()
    assert (trace.status, trace.duration_ms, trace.total_tokens) == ("completed", 1_000, 17)
    assert trace.cost_usd == Decimal("0.3")
    assert [step.id for step in trace.steps] == ["draft", "check", "polish", "odd", "busy"]
    assert (trace.steps[0].duration_ms, trace.steps[0].attempt, trace.steps[4].model) == (812, 1, "m-1")


@pytest.mark.parametrize(
    "step",
    [
        "no step at all",
        {"stepId": "draft", "modelUsed": "m-1"},
        {"stepId": "draft", "tokens": {"total": 3}},
        {"stepId": "draft", "tokens": "many"},
        {"stepId": "draft", "costUsd": "cheap"},
        {"stepId": "draft", "status": "failed", "tokens": {"total": 3}},
    ],
    ids=str,
)
def test_a_step_whose_cost_is_not_known(scripted: MakeClient, server: ScriptedServer, step: Any) -> None:
    """A step that may have cost something makes the cost of the job unknown, whatever the others cost."""
    server.on("trace", respond(json={"flowRun": {}, "steps": [{"costUsd": "0.1"}, step]}))
    assert scripted().flow(FLOW).attach("job-1").trace().cost_usd is None


@pytest.mark.parametrize(
    "steps",
    [
        [],
        None,
        {},
        [{"durationMs": 10**400}],
        [{"tokens": 2**64, "attempt": 2**64}],
        [{"tokens": -1}],
        [{"costUsd": "NaN"}],
        [{"costUsd": "-5"}],
        [{"costUsd": "9e999999"}] * 2,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_an_empty_trace_has_no_totals(scripted: MakeClient, server: ScriptedServer, steps: Any) -> None:
    """Without numbers the sums are unknown, which is not the same as zero."""
    server.on("trace", respond(json={"flowRun": {"status": "running"}, "steps": steps}))
    trace = scripted().flow(FLOW).attach("job-1").trace()
    assert (trace.total_tokens, trace.cost_usd) == (None, None)
    assert [step.attempt for step in trace.steps] == [None] * len(trace.steps)


def test_a_trace_without_end(scripted: MakeClient, server: ScriptedServer) -> None:
    """A trace of more steps than a run can have is refused: each would take more memory than its JSON."""
    server.on("trace", respond(json={"steps": [{}] * 20_000}))
    with pytest.raises(ResponseTooLargeError, match="too many steps"):
        scripted().flow(FLOW).attach("job-1").trace()


def test_the_failed_step(scripted: MakeClient, server: ScriptedServer) -> None:
    """The step that failed last is known with its model, its attempt and the provider's message."""
    steps = [
        {"stepId": "draft", "attempt": 1, "status": "FAILED", "error": "slow"},
        {"stepId": "draft", "attempt": 2, "status": "completed"},
        {
            "stepId": "check",
            "attempt": 3,
            "status": "failed",
            "modelUsed": "m-1",
            "error": {"code": "MODEL_OVERLOADED", "message": "try later"},
        },
        {"stepId": "polish", "status": "skipped"},
    ]
    server.on("trace", respond(json={"flowRun": {"status": "failed"}, "steps": steps}))
    step = scripted().flow(FLOW).attach("job-1").trace().failed_step
    assert step is not None
    assert (step.id, step.attempt, step.model) == ("check", 3, "m-1")
    assert step.error == "MODEL_OVERLOADED: try later"
    status = JobStatus(id="job-1", state=JobState.FAILED, error="no luck")
    with pytest.raises(
        JobFailedError, match=r"job-1 failed in step check \(m-1, attempt 3\): no luck"
    ) as failed:
        status.result_or_raise(step=step)
    assert failed.value.step is step


@pytest.mark.parametrize(
    ("status", "kind"), [(404, JobNotFoundError), (403, PermissionDeniedError), (405, PermanentError)]
)
def test_a_trace_that_cannot_be_read(
    scripted: MakeClient, server: ScriptedServer, status: int, kind: type[APIError]
) -> None:
    """Servers need not show traces to API keys: that is an error at once, which names the job."""
    server.on("trace", rejection(status, "REFUSED"))
    with pytest.raises(kind) as caught:
        scripted().flow(FLOW).attach("job-1").trace()
    assert caught.value.job_id == "job-1"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ({"org": "acme", "project": "spelling", "environment": "test"}, ("acme", "spelling", "test")),
        ({"organization": {"slug": "acme"}, "project": {"slug": "spelling"}}, ("acme", "spelling", None)),
        ({"orgSlug": "acme", "projectSlug": "spelling", "env": "live"}, ("acme", "spelling", "live")),
        ({}, (None, None, None)),
    ],
    ids=["bare", "objects", "slugs", "nothing"],
)
def test_the_keys_home_is_read_tolerantly(
    scripted: MakeClient, server: ScriptedServer, response: dict[str, Any], expected: tuple[str | None, ...]
) -> None:
    """The fields have no documented names: recognised ones are reported, and a valid key is a valid key."""
    server.on("verify", respond(json=response))
    info = scripted().verify_key()
    assert (info.org, info.project, info.environment) == expected


def test_a_wrong_key_is_reported_at_once(scripted: MakeClient, server: ScriptedServer) -> None:
    """verify_key() on a revoked key raises after one request."""
    server.on("verify", rejection(401, "INVALID_KEY"))
    with pytest.raises(AuthenticationError):
        scripted().verify_key()
    assert len(server.requests) == 1
