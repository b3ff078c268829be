"""The tasks, sync and async, called as plain functions against the local Noukai."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from prefect.tasks import Task
from pydantic import BaseModel, RootModel

from noukai_core import (
    FlowNotFoundError,
    InvalidInputError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    JobTimeoutError,
    NoukaiError,
)
from noukai_prefect import (
    NoukaiCredentials,
    arun_noukai_job,
    arun_noukai_jobs,
    asubmit_noukai_job,
    await_for_noukai_job,
    is_retryable,
    run_noukai_job,
    run_noukai_jobs,
    submit_noukai_job,
    wait_for_noukai_job,
)
from tests.table import Table

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"


class Undefined(BaseModel):
    """A model that cannot be built, since a type is not imported when the program runs."""

    on: Missing  # type: ignore[name-defined]  # pyright: ignore  # noqa: F821


class Words(RootModel[list[str]]):
    """A model that Prefect cannot take apart."""

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return iter(self.root)


TWINS = {
    "submit": (submit_noukai_job, asubmit_noukai_job),
    "wait": (wait_for_noukai_job, await_for_noukai_job),
    "run": (run_noukai_job, arun_noukai_job),
    "many": (run_noukai_jobs, arun_noukai_jobs),
}
Call = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    """Calls the sync or async function of a task by its short name."""

    async def called(name: str, *arguments: Any, **options: Any) -> Any:
        sync, twin = TWINS[name]
        if request.param == "sync":
            return sync.fn(*arguments, **options)
        return await twin.fn(*arguments, **options)  # type: ignore[misc]

    return called


async def test_run(call: Call, credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """A job is submitted once with all arguments, and its output is returned."""
    output = await call(
        "run",
        credentials,
        FLOW,
        "hello",
        parameters={"grade": 3},
        block_overrides={"s1": {"t": 1}},
        version=7,
    )
    assert output == {"message": "hello", "parameters": {"grade": 3}}
    (job,) = emulator.control.jobs()
    assert (job["flow"], job["version"], job["block_overrides"]) == (FLOW, 7, {"s1": {"t": 1}})


async def test_submit_then_wait(call: Call, credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """Submitting returns the id without a poll, and the id is enough to wait."""
    job_id = await call("submit", credentials, FLOW, "hello")
    assert emulator.control.counts(job_id)["poll"] == 0
    assert await call("wait", credentials, FLOW, job_id) == {"message": "hello"}


@pytest.mark.parametrize("name", ["submit", "run"])
async def test_a_callback(name: str, call: Call, credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """The address that Noukai calls at the end is submitted with the job."""
    callback = {"callback_url": "https://relay.example/noukai", "callback_events": ["flow.failed"]}
    await call(name, credentials, FLOW, "hello", **callback)
    (job,) = emulator.control.jobs()
    assert (job["callback_url"], job["callback_events"]) == tuple(callback.values())


async def test_failed(call: Call, credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """The error of a failed job has the flow's own words and the job's id."""
    emulator.control.script("grade-3", outcome="failed", error="no luck")
    with pytest.raises(JobFailedError, match="no luck") as failed:
        await call("run", credentials, FLOW, "hello")
    assert failed.value.job_id == emulator.control.jobs()[0]["id"]
    assert failed.value.step is not None
    assert f"failed in step {failed.value.step.label}: no luck" in str(failed.value)


async def test_cancelled(call: Call, credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """A job that is cancelled on the Noukai side raises by default, and returns a state on request."""
    emulator.control.script("grade-3", outcome="cancelled")
    with pytest.raises(JobCancelledError):
        await call("run", credentials, FLOW, "hello")
    state = await call("run", credentials, FLOW, "hello", on_cancelled="cancel")
    assert state.is_cancelled()


async def test_timeout(call: Call, credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """A job that times out is cancelled, and the error is a `TimeoutError` for Prefect."""
    emulator.control.script("grade-3", outcome="never")
    with pytest.raises(JobTimeoutError) as late:
        await call("run", credentials, FLOW, "hello", timeout=0.3)
    assert isinstance(late.value, TimeoutError)
    assert emulator.control.jobs()[0]["state"] == "cancelled"


async def test_timeout_without_cancel(call: Call, credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """A job that times out can be left running."""
    emulator.control.script("grade-3", outcome="never")
    with pytest.raises(JobTimeoutError):
        await call("run", credentials, FLOW, "hello", timeout=0.3, cancel_on_timeout=False)
    assert emulator.control.counts()["cancel"] == 0


@pytest.mark.parametrize(
    ("flow", "given"),
    [
        ("../x", {"message": "hello"}),
        ("acme/spelling/Grade", {"message": "hello"}),
        (FLOW, {}),
        (FLOW, {"message": 7}),
        (FLOW, {"parameters": {"x": float("nan")}}),
        (FLOW, {"parameters": {"attachments": []}}),
        (FLOW, {"message": "hello", "version": -1}),
        (FLOW, {"message": "hello", "timeout": 0}),
        (FLOW, {"message": "hello", "timeout": "60"}),
        (FLOW, {"message": "hello", "poll_interval": -1}),
        (FLOW, {"message": "hello", "on_cancelled": "explode"}),
    ],
)
async def test_bad_input_sends_nothing(
    call: Call, credentials: NoukaiCredentials, emulator: Emulator, flow: str, given: dict[str, Any]
) -> None:
    """Invalid input is rejected before anything is sent, even if it concerns only the wait."""
    with pytest.raises(InvalidInputError):
        await call("run", credentials, flow, **given)
    assert emulator.control.requests() == []


async def test_unknown_job(call: Call, credentials: NoukaiCredentials) -> None:
    """The error about an unknown job names the job."""
    with pytest.raises(JobNotFoundError, match="job_unknown"):
        await call("wait", credentials, FLOW, "job_unknown")


async def test_no_such_flow(call: Call, credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """A permanent error ends the task at once, without another submission."""
    emulator.control.script("grade-3", missing=True)
    with pytest.raises(FlowNotFoundError):
        await call("run", credentials, FLOW, "hello")
    assert emulator.control.counts()["submit"] == 1


async def test_faults_while_waiting(call: Call, credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """Gateway errors, dropped connections and invalid responses during the wait do not fail a healthy job."""
    emulator.control.script("grade-3", after_seconds=1)
    for fault in (
        {"kind": "status", "status": 502, "body": "html"},
        {"kind": "drop_before"},
        {"kind": "nonsense"},
        {"kind": "status", "status": 503, "retry_after": 0},
    ):
        emulator.control.fault(**fault, on="poll")
    assert await call("run", credentials, FLOW, "hello") == {"message": "hello"}
    assert emulator.control.counts()["submit"] == 1


async def test_many(call: Call, credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """The outcomes of many inputs, of both forms, are in the order of the inputs."""
    outcomes = await call("many", credentials, FLOW, ["a", {"message": "b", "parameters": {"n": 1}}])
    assert [outcome.output for outcome in outcomes] == [
        {"message": "a"},
        {"message": "b", "parameters": {"n": 1}},
    ]
    assert [outcome.index for outcome in outcomes] == [0, 1]
    assert emulator.control.counts()["submit"] == 2


@pytest.mark.parametrize(
    ("inputs", "options", "reported"),
    [
        ([{"massage": "a"}], {}, "massage"),
        (["a", 7], {}, r"inputs\[1\]"),
        ([], {}, "inputs is empty"),
        ("abc", {}, "inputs is the text 'abc'"),
        ("nowhere/inputs.jsonl", {}, "nowhere/inputs.jsonl: cannot be opened"),
        ({"message": "a"}, {}, "inputs is a dict"),
        (Table(), {}, "inputs is a Table"),
        (["a"], {"max_cost_usd": 1}, "max_cost_usd needs trace=True"),
        (["a"], {"max_cost_usd": 0, "trace": True}, "max_cost_usd is 0"),
        (["a"], {"output_type": dict}, "output_type"),
        (["a"], {"output_type": Undefined}, "output_type Undefined cannot be built"),
        (["a"], {"output_type": Words}, "output_type Words has its own __iter__"),
        (["a"], {"max_concurrency": 0}, "max_concurrency"),
        (["a"], {"raise_on": "never"}, "raise_on"),
        (["a"], {"timeout": -1}, "timeout"),
    ],
)
async def test_many_of_nonsense(
    call: Call,
    credentials: NoukaiCredentials,
    emulator: Emulator,
    inputs: Any,
    options: dict[str, Any],
    reported: str,
) -> None:
    """Invalid inputs and options are named in the error, and nothing is sent."""
    with pytest.raises(InvalidInputError, match=reported):
        await call("many", credentials, FLOW, inputs, **options)
    assert emulator.control.requests() == []


async def test_one_bad_input_of_many(call: Call, credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """One input that is no valid JSON is an unsuccessful outcome, or part of the exception group."""
    inputs = ["a", {"parameters": {"x": float("nan")}}]
    good, bad = await call("many", credentials, FLOW, inputs, raise_on="none")
    assert good.state == "completed"
    assert isinstance(bad.error, InvalidInputError)
    with pytest.raises(ExceptionGroup, match="1 of 2") as raised:
        await call("many", credentials, FLOW, inputs, raise_on="any")
    assert len(raised.value.exceptions) == 1


@pytest.mark.parametrize("name", TWINS)
def test_twins_agree(name: str) -> None:
    """Both forms of a task have the same arguments and defaults, and neither is ever cached."""
    sync, twin = TWINS[name]
    assert inspect.signature(sync.fn) == inspect.signature(twin.fn)
    assert inspect.iscoroutinefunction(twin.fn)
    assert not inspect.iscoroutinefunction(sync.fn)
    assert sync.persist_result is False
    assert twin.persist_result is False
    for form in (sync, twin):
        assert form.cache_policy.compute_key(_Anything(), {"flow": FLOW}, {}) is None


class _Anything:
    """A stand-in for the context of a task run, from which a cache key could be computed."""

    task = run_noukai_job
    task_run = type("Run", (), {"id": uuid4(), "flow_run_id": uuid4()})


def _batch_error(error: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("1 of 3", [error])


@pytest.mark.parametrize(
    ("error", "worth"),
    [
        (JobFailedError("failed", job_id="job_1", status=None), True),
        (JobTimeoutError("late", job_id="job_1", status=None), True),
        (JobCancelledError("cancelled", job_id="job_1", status=None), False),
        (InvalidInputError("wrong"), False),
        (NoukaiError("something"), True),
        (ValueError("of the flow"), True),
        (
            ExceptionGroup("2 of 3", [JobFailedError("f", job_id="j", status=None), InvalidInputError("w")]),
            True,
        ),
        (
            ExceptionGroup(
                "2 of 3", [JobCancelledError("c", job_id="j", status=None), InvalidInputError("w")]
            ),
            False,
        ),
        (ExceptionGroup("tasks", [_batch_error(JobCancelledError("c", job_id="j", status=None))]), False),
        (
            ExceptionGroup(
                "tasks",
                [_batch_error(InvalidInputError("w")), _batch_error(NoukaiError("something"))],
            ),
            True,
        ),
    ],
)
async def test_is_retryable(error: Exception, worth: bool) -> None:
    """A retry is made where it may help, but not after permanent errors or a cancelled job."""
    from prefect.states import exception_to_failed_state

    state = await exception_to_failed_state(error)
    run: Any = None
    task: Task[..., Any] = run_noukai_job
    assert is_retryable(task, run, state) is worth


@pytest.mark.parametrize(("follow", "streams"), [("steps", 1), ("state", 0), (None, 0)])
async def test_follow(
    call: Call, credentials: NoukaiCredentials, emulator: Emulator, follow: Any, streams: int
) -> None:
    """The stream of a job is opened only if its steps are followed."""
    emulator.control.script(FLOW, after_seconds=0.3)
    assert await call("run", credentials, FLOW, "hello", follow=follow, poll_interval=0.05)
    assert emulator.control.counts().get("stream", 0) == streams


async def _loaded() -> None:
    """Stand for a block whose loading nobody awaited."""


@pytest.mark.parametrize(
    ("given", "reported"),
    [
        (lambda: "default", r"credentials is a str, .*: load the block with `NoukaiCredentials.load"),
        (_loaded, r"credentials is a coroutine, .*: write `await NoukaiCredentials.aload"),
        (lambda: ("api_key", "nk_test_secret"), r"credentials is a tuple, .*: write `unmapped"),
        (lambda: None, r"credentials is a NoneType"),
    ],
    ids=["name", "coroutine", "mapped", "nothing"],
)
@pytest.mark.parametrize("name", TWINS)
async def test_credentials_that_are_no_block(
    call: Call, emulator: Emulator, name: str, given: Callable[[], Any], reported: str
) -> None:
    """Anything else in place of the credentials is an error that says what to write, and not what it was."""
    argument = ["hello"] if name == "many" else "job-1"
    with pytest.raises(InvalidInputError, match=reported) as raised:
        await call(name, given(), FLOW, argument)
    assert "nk_" not in str(raised.value)
    assert emulator.control.requests() == []


@pytest.mark.parametrize("name", ["run", "wait"])
async def test_a_wrong_follow_sends_nothing(
    call: Call, credentials: NoukaiCredentials, emulator: Emulator, name: str
) -> None:
    """Another value of `follow` is refused before anything is sent."""
    with pytest.raises(InvalidInputError, match="follow is 'none'"):
        await call(name, credentials, FLOW, "job-1", follow="none")
    assert emulator.control.requests() == []
