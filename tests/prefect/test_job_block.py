"""The job block and its run, without a Prefect server: each method and its async twin."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from noukai_core import InvalidInputError, JobFailedError, JobState, JobTimeoutError
from noukai_prefect import NoukaiCredentials, NoukaiJob, NoukaiJobRun, run_noukai_job

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"


@pytest.fixture
def job(credentials: NoukaiCredentials) -> NoukaiJob:
    """A job block."""
    return NoukaiJob(credentials=credentials, flow=FLOW, message="hello")


def test_sync(job: NoukaiJob, emulator: Emulator) -> None:
    """Without an event loop, each method is a plain call."""
    run = job.trigger()
    run.wait_for_completion()
    assert run.fetch_result() == {"message": "hello"}
    assert run.status().state == JobState.COMPLETED
    assert emulator.control.counts()["submit"] == 1


async def test_async(job: NoukaiJob, emulator: Emulator) -> None:
    """In an event loop, the async twins do the same."""
    run = await job.atrigger()
    await run.await_for_completion()
    assert await run.afetch_result() == {"message": "hello"}
    assert (await run.astatus()).state == JobState.COMPLETED
    assert emulator.control.counts()["submit"] == 1


async def test_sync_inside_a_loop(job: NoukaiJob) -> None:
    """A sync method that async code calls returns a value, never a coroutine."""
    run = job.trigger()
    assert isinstance(run, NoukaiJobRun)
    assert run.fetch_result() == {"message": "hello"}


def test_result_is_fetched_once(job: NoukaiJob, emulator: Emulator) -> None:
    """The run keeps the output, and does not request it again."""
    run = job.trigger()
    run.fetch_result()
    polls = emulator.control.counts()["poll"]
    run.wait_for_completion()
    run.fetch_result()
    assert emulator.control.counts()["poll"] == polls


def test_from_id(job: NoukaiJob, credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """The run of an existing job is created from its id without a request."""
    job_id = job.trigger().job_id
    before = len(emulator.control.requests())
    run = NoukaiJobRun.from_id(credentials, FLOW, job_id, submitted_at=datetime.now(UTC))
    assert len(emulator.control.requests()) == before
    assert run.fetch_result() == {"message": "hello"}
    assert emulator.control.counts()["submit"] == 1


def test_a_run_from_id_waits_as_it_is_told(credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """How to wait for an existing job is said with the arguments that the block and the tasks have."""
    emulator.control.script("grade-3", outcome="never")
    job_id = NoukaiJob(credentials=credentials, flow=FLOW, message="hello").trigger().job_id
    run = NoukaiJobRun.from_id(
        credentials,
        FLOW,
        job_id,
        timeout=0.2,
        poll_interval=0.1,
        on_cancelled="cancel",
        cancel_on_timeout=False,
        follow=None,
    )
    with pytest.raises(JobTimeoutError):
        run.wait_for_completion()
    assert emulator.control.counts()["cancel"] == 0
    run.cancel()
    assert run.fetch_result().name == "Cancelled"


@pytest.mark.parametrize(
    ("argument", "value"),
    [("timeout", -1), ("poll_interval", 0), ("on_cancelled", "ignore"), ("follow", "all")],
)
def test_a_run_from_id_checks_its_arguments(
    credentials: NoukaiCredentials, argument: str, value: object
) -> None:
    """A wrong argument is an error when the run is created, and not when it is waited for."""
    options: dict[str, Any] = {argument: value}
    with pytest.raises(InvalidInputError, match=argument):
        NoukaiJobRun.from_id(credentials, FLOW, "job_1", **options)


def test_a_run_from_id_has_the_arguments_of_the_block() -> None:
    """The fields of the block that say how to wait are arguments of `from_id`, with the same defaults."""
    parameters = inspect.signature(NoukaiJobRun.from_id).parameters
    fields = NoukaiJob.model_fields
    waiting = {"timeout", "poll_interval", "on_cancelled", "cancel_on_timeout", "follow"}
    assert waiting == set(parameters) - {"credentials", "flow", "job_id", "submitted_at"}
    assert all(parameters[name].default == fields[name].get_default() for name in waiting)


def test_failure_is_raised_by_the_wait(job: NoukaiJob, emulator: Emulator) -> None:
    """A failed job raises in the wait, not only when its result is fetched."""
    emulator.control.script("grade-3", outcome="failed", error="no luck")
    with pytest.raises(JobFailedError, match="no luck"):
        job.trigger().wait_for_completion()


def test_cancel(job: NoukaiJob, emulator: Emulator) -> None:
    """A run cancels its job, and returns whether that succeeded."""
    emulator.control.script("grade-3", outcome="never")
    run = job.trigger()
    assert run.cancel() is True
    assert emulator.control.job(run.job_id)["state"] == "cancelled"
    emulator.control.fault("no_cancel", on="cancel", times=None)
    assert job.trigger().cancel() is False


@pytest.mark.parametrize(
    ("version", "sent"), [("production", "production"), ("draft", "draft"), ("7", 7), (7, 7)]
)
def test_version(
    credentials: NoukaiCredentials, emulator: Emulator, version: str | int, sent: str | int
) -> None:
    """A version may be a word, or a number as text from the form or as itself from code."""
    block = NoukaiJob(credentials=credentials, flow=FLOW, message="hello", version=version)
    block.trigger()
    assert emulator.control.jobs()[0]["version"] == sent
    assert block.version == str(version), "which the text field of the form can show"


@pytest.mark.parametrize("version", [True, 1.0, None])
def test_a_version_of_another_type(credentials: NoukaiCredentials, version: Any) -> None:
    """What is neither text nor a whole number is refused by the block itself."""
    with pytest.raises(ValidationError, match="version"):
        NoukaiJob(credentials=credentials, flow=FLOW, message="hello", version=version)


def test_bad_fields_send_nothing(credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """A block with invalid fields is rejected before a request."""
    with pytest.raises(InvalidInputError):
        NoukaiJob(credentials=credentials, flow=FLOW).trigger()
    with pytest.raises(InvalidInputError, match="version"):
        NoukaiJob(credentials=credentials, flow=FLOW, message="hello", version="latest").trigger()
    assert emulator.control.requests() == []


def test_repr(job: NoukaiJob) -> None:
    """The text of a run has its job and flow, and nothing about the credentials."""
    run = job.trigger()
    assert repr(run) == f"NoukaiJobRun({run.job_id!r}, flow={FLOW!r})"


def test_callbacks(credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """A block's callbacks go out with the submission."""
    NoukaiJob(
        credentials=credentials,
        flow=FLOW,
        message="hello",
        callback_url="https://example.com/ended",
        callback_events=["flow.failed"],
    ).trigger()
    (sent,) = emulator.control.jobs()
    assert sent["callback_url"] == "https://example.com/ended"
    assert sent["callback_events"] == ["flow.failed"]


@pytest.mark.parametrize(("cancel_on_timeout", "cancels"), [(True, 1), (False, 0)])
def test_whether_a_timeout_cancels(
    credentials: NoukaiCredentials, emulator: Emulator, cancel_on_timeout: bool, cancels: int
) -> None:
    """A wait that times out cancels the job, unless the block says otherwise."""
    emulator.control.script("grade-3", outcome="never")
    job = NoukaiJob(
        credentials=credentials,
        flow=FLOW,
        message="hello",
        timeout=0.2,
        cancel_on_timeout=cancel_on_timeout,
    )
    with pytest.raises(JobTimeoutError):
        job.trigger().wait_for_completion()
    assert emulator.control.counts()["cancel"] == cancels


def test_the_same_parameters_as_the_task() -> None:
    """The fields of the block are the parameters of `run_noukai_job`, with the same defaults."""
    not_in_a_block = {
        "session_id": "each trigger is a submission, and none of one fixed session can be looked up",
        "output_type": "a class cannot be stored",
    }
    parameters = inspect.signature(run_noukai_job.fn).parameters
    fields = NoukaiJob.model_fields
    assert set(parameters) - set(not_in_a_block) == set(fields)
    assert {name: fields[name].get_default() for name in fields if not fields[name].is_required()} == {
        name: parameters[name].default for name in fields if not fields[name].is_required()
    }
