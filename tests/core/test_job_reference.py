"""Everything that the SDK's Job page names, by those names, against a server over real HTTP."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

import noukai_core
from noukai_core import (
    AsyncFlow,
    AsyncJob,
    AsyncNoukai,
    ExecuteResult,
    Flow,
    Job,
    JobState,
    JobStatus,
    Noukai,
)
from tests.core.scripted_server import FLOW

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.core.conftest import MakeClient


def test_a_job_is_submitted_polled_and_waited_for(local: MakeClient, emulator: Emulator) -> None:
    """A submitted job has an id, a state, and in the end the flow's output."""
    emulator.control.script("grade-3", after_seconds=0.2, result={"words": ["receive"]})
    with local() as client:
        job = client.flow(FLOW).job(message="recieve")
        assert job.id
        assert job.flow == FLOW
        assert job.status().state in {"pending", "running", "completed"}
        result = job.wait(timeout_ms=20_000)
    assert isinstance(result, ExecuteResult)
    assert result.output == {"words": ["receive"]}


def test_a_status_has_all_eight_attributes(local: MakeClient, emulator: Emulator) -> None:
    """A finished job's status has id, state, result, error, the three times and the progress."""
    emulator.control.script("grade-3", after_seconds=0.1, result=7, progress=[{"step": 1}, {"step": 2}])
    with local() as client:
        job = client.flow(FLOW).job(message="hello")
        job.wait(timeout_ms=20_000)
        status = job.status()
    assert isinstance(status, JobStatus)
    assert (status.id, status.state, status.error) == (job.id, "completed", None)
    assert status.result.output == 7
    assert status.progress == {"step": 2}
    created, started, completed = (
        datetime.fromisoformat(moment)
        for moment in (status.created_at, status.started_at, status.completed_at)
    )
    assert created <= started <= completed


def test_a_failed_job_has_its_error(local: MakeClient, emulator: Emulator) -> None:
    """The status of a failed job carries the server's error and no result."""
    emulator.control.script("grade-3", after_polls=1, outcome="failed", error="the model ran out of words")
    with local() as client:
        job = client.flow(FLOW).job(message="hello")
        with pytest.raises(noukai_core.JobFailedError, match="the model ran out of words") as caught:
            job.wait(timeout_ms=20_000)
        status = job.status()
    assert status.state is JobState.FAILED
    assert status.error == "the model ran out of words"
    assert status.result is None
    assert caught.value.job_id == job.id
    assert caught.value.status.error == status.error
    assert job.id in str(caught.value)


def test_a_job_cancelled_elsewhere_raises_when_waited_for(local: MakeClient, emulator: Emulator) -> None:
    """Waiting for a job that was stopped on the server raises JobCancelledError with the last status."""
    emulator.control.script("grade-3", after_polls=1, outcome="cancelled")
    with local() as client:
        job = client.flow(FLOW).job(message="hello")
        with pytest.raises(noukai_core.JobCancelledError) as caught:
            job.wait(timeout_ms=20_000)
    assert caught.value.job_id == job.id
    assert caught.value.status.state is JobState.CANCELLED


def test_cancel_stops_a_running_job(local: MakeClient, emulator: Emulator) -> None:
    """After cancel() the job ends cancelled, and cancel() itself gives nothing."""
    emulator.control.script("grade-3", outcome="never")
    with local() as client:
        job = client.flow(FLOW).job(message="hello")
        assert job.cancel() is None
        with pytest.raises(noukai_core.JobCancelledError):
            job.wait(timeout_ms=20_000)
    assert emulator.control.counts(job.id)["cancel"] == 1


def test_cancel_has_no_effect_on_a_finished_job(local: MakeClient, emulator: Emulator) -> None:
    """Cancelling a completed job returns, and the job stays completed."""
    emulator.control.script("grade-3", after_polls=1)
    with local() as client:
        job = client.flow(FLOW).job(message="hello")
        job.wait(timeout_ms=20_000)
        job.cancel()
        assert job.status().state == "completed"


def test_a_wait_that_runs_out_raises_a_timeout_and_leaves_the_job_alone(
    local: MakeClient, emulator: Emulator
) -> None:
    """At the deadline a TimeoutError with job id and last status is raised, and the job is not cancelled."""
    emulator.control.script("grade-3", outcome="never")
    with local() as client:
        job = client.flow(FLOW).job(message="hello")
        with pytest.raises(TimeoutError) as caught:
            job.wait(timeout_ms=3_000)
        assert isinstance(caught.value, noukai_core.JobTimeoutError)
        assert caught.value.job_id == job.id
        assert caught.value.status.state in {"pending", "running"}
        assert job.status().state in {"pending", "running"}
    assert emulator.control.counts().get("cancel", 0) == 0


def test_an_accepted_submission_is_pending(local: MakeClient, emulator: Emulator) -> None:
    """An accepted job has its id and the state pending, regardless of the word that the server used."""
    with local() as client:
        job = client.flow(FLOW).job(message="hello")
        assert job.accepted.id == job.id
        assert job.accepted.state == "pending"
        assert job.submitted_at.tzinfo is not None
        assert abs((datetime.now(UTC) - job.submitted_at).total_seconds()) < 30


def test_the_five_states_are_words() -> None:
    """JobState is the five words of the reference, each equal to its plain string."""
    assert [str(state) for state in JobState] == ["pending", "running", "completed", "failed", "cancelled"]
    assert [state.finished for state in JobState] == [False, False, True, True, True]
    assert JobState.COMPLETED == "completed"


@pytest.mark.parametrize(
    ("flow", "options"), [(FLOW, {}), ("grade-3", {"org": "acme", "project": "spelling"})]
)
def test_a_flow_is_named_whole_or_inside_the_clients_project(
    local: MakeClient, flow: str, options: dict[str, str]
) -> None:
    """`flow()` takes org/project/slug, or just the slug if the client has org and project."""
    with local(**options) as client:
        assert client.flow(flow).path == FLOW


def test_a_whole_path_wins_over_the_clients_project(local: MakeClient) -> None:
    """A full path is used as given, even by a client with another org and project."""
    with local(org="other", project="else") as client:
        assert client.flow(FLOW).path == FLOW


def test_attach_gives_the_handle_without_a_request(local: MakeClient, emulator: Emulator) -> None:
    """Attaching sends no request; the handle then works like any other."""
    emulator.control.script("grade-3", after_polls=1, result="done")
    with local() as client:
        job_id = client.flow(FLOW).job(message="hello").id
        before = len(emulator.control.requests())
        job = client.flow(FLOW).attach(job_id)
        assert (job.id, job.flow, job.accepted) == (job_id, FLOW, None)
        assert len(emulator.control.requests()) == before
        assert job.wait(timeout_ms=20_000).output == "done"
    assert emulator.control.counts()["submit"] == 1


def test_verify_key_costs_no_job(local: MakeClient, emulator: Emulator) -> None:
    """Verifying the key is one request that submits nothing, and the response says whose key it is."""
    with local() as client:
        info = client.verify_key()
    assert {info.org, info.project} != {None}
    assert {kind: count for kind, count in emulator.control.counts().items() if count} == {"verify": 1}


def test_a_trace_has_the_steps_of_a_run(local: MakeClient, emulator: Emulator) -> None:
    """The trace of a finished run has its steps, its duration and its cost, if the server provides them."""
    emulator.control.script("grade-3", after_polls=1, steps=[{"stepId": "draft"}, {"stepId": "check"}])
    with local() as client:
        job = client.flow(FLOW).job(message="hello", trace=True)
        job.wait(timeout_ms=20_000)
        trace = job.trace()
    assert trace.status == "completed"
    assert len(trace.steps) == 2


PAIRS: list[tuple[type, type]] = [(Noukai, AsyncNoukai), (Flow, AsyncFlow), (Job, AsyncJob)]


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS, ids=["client", "flow", "job"])
def test_both_drivers_have_the_same_names_and_parameters(blocking: type, asynchronous: type) -> None:
    """A public name or parameter of one client exists in the other; only `close` is called `aclose` there."""
    assert public(blocking) == public(asynchronous)


def public(kind: type) -> dict[str, Any]:
    names = ["__init__", *(name for name in dir(kind) if not name.startswith("_"))]
    members = {name: getattr(kind, name) for name in names}
    shown = {name: parameters(member) if callable(member) else None for name, member in members.items()}
    return {{"aclose": "close"}.get(name, name): member for name, member in shown.items()}


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(name, item.kind, item.default) for name, item in inspect.signature(function).parameters.items()]


DOCUMENTED = """
Noukai AsyncNoukai Flow AsyncFlow Job AsyncJob JobState JobStatus JobAccepted ExecuteResult Submission
ApiKey KeyInfo RunTrace RunUrlTemplate TraceStep NoukaiError InvalidInputError APIError PermanentError
BadRequestError AuthenticationError InsufficientCreditsError PermissionDeniedError FlowNotFoundError
ModelKeyRejectedError CancelUnsupportedError CertificateError ClientClosedError JobNotFoundError
TransientError RateLimitError InvalidResponseError RedirectError ResponseTooLargeError
ConnectionPoolTimeoutError
SubmissionUnknownError JobError JobFailedError JobCancelledError JobOutputInvalidError JobTimeoutError
JobRequest ClientArguments CancelOutcome acancel_job cancel_job SubmissionRecord one_line
JobBatch AsyncJobBatch JobInput JobOutcome OutcomeState BatchLedger LedgerEntry MemoryLedger NotSubmittedError
EndedRuns FlowRun RunsCursor
"""


def test_every_public_name_is_there_and_no_other() -> None:
    """`__all__` is what is documented, and each of its names resolves."""
    assert sorted(noukai_core.__all__) == sorted(DOCUMENTED.split())
    aliases = {"JobInput"}
    named = set(noukai_core.__all__) - aliases
    assert all(getattr(noukai_core, name).__name__ == name for name in named)
    assert set(noukai_core.__all__) <= set(dir(noukai_core))
