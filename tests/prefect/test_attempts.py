"""A task retry finds what the earlier attempt submitted, and pays for nothing twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow, task
from pydantic import BaseModel

from noukai_core import InvalidInputError, JobOutputInvalidError, JobTimeoutError
from noukai_prefect import (
    NoukaiCredentials,
    arun_noukai_job,
    arun_noukai_jobs,
    asubmit_noukai_job,
    await_for_noukai_job,
)

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

pytestmark = pytest.mark.usefixtures("prefect_server")

FLOW = "acme/spelling/grade-3"
TIMES_OUT = {"timeout": 0.3, "cancel_on_timeout": False}


async def one(credentials: NoukaiCredentials, **options: Any) -> Any:
    """Run a job in a task with one retry."""
    return await arun_noukai_job.with_options(retries=1)(credentials, FLOW, "hello", **options)


async def many(credentials: NoukaiCredentials, **options: Any) -> Any:
    """Run a batch of one job in a task with one retry."""
    return await arun_noukai_jobs.with_options(retries=1)(credentials, FLOW, ["hello"], **options)


@pytest.mark.parametrize("run", [one, many])
@pytest.mark.parametrize("caller", [flow, lambda run: run], ids=["in a flow", "without a flow"])
async def test_retry_of_a_young_job(
    credentials: NoukaiCredentials,
    emulator: Emulator,
    caller: Callable[..., Any],
    run: Callable[..., Awaitable[Any]],
) -> None:
    """A retry waits for the existing job, with and without a flow, even before Noukai knows the job."""
    emulator.control.script("grade-3", visible_after_seconds=60)
    with pytest.raises((JobTimeoutError, ExceptionGroup)):
        await caller(run)(credentials, **TIMES_OUT)
    assert emulator.control.counts()["submit"] == 1


@pytest.mark.parametrize("run", [one, many])
async def test_retry_of_a_failed_job_without_a_flow(
    credentials: NoukaiCredentials, emulator: Emulator, run: Callable[..., Awaitable[Any]]
) -> None:
    """After a failed job, the retry of a task without a flow submits a new one, with a new session."""
    emulator.control.script("grade-3", outcome="failed")
    with pytest.raises(Exception, match=r"failed|did not complete"):
        await run(credentials)
    assert len({job["session_id"] for job in emulator.control.jobs()}) == 2


@pytest.mark.parametrize("run", [one, many])
@pytest.mark.parametrize("caller", [flow, lambda run: run], ids=["in a flow", "without a flow"])
async def test_retry_of_a_task_that_calls_the_task(
    credentials: NoukaiCredentials,
    emulator: Emulator,
    caller: Callable[..., Any],
    run: Callable[..., Awaitable[Any]],
) -> None:
    """The retry of a user's task finds each job of the tasks that its first try called."""
    tries: list[Any] = []

    @task(retries=1)
    async def outer(credentials: NoukaiCredentials) -> None:
        tries.append([await run(credentials), await run(credentials)])
        raise RuntimeError("after the jobs")

    async def call(credentials: NoukaiCredentials) -> None:
        await outer(credentials)

    with pytest.raises(RuntimeError, match="after the jobs"):
        await caller(call)(credentials)
    assert len(tries) == 2
    assert emulator.control.counts()["submit"] == 2


@pytest.mark.parametrize("parameters", [{1: "a", "b": 2}, {("a", "b"): 1}])
async def test_parameters_with_keys_that_are_no_strings(
    credentials: NoukaiCredentials, emulator: Emulator, parameters: dict[Any, Any]
) -> None:
    """Parameters whose keys are no strings are rejected, and in a batch only those."""
    with pytest.raises(InvalidInputError, match="keys must be strings"):
        await arun_noukai_job(credentials, FLOW, parameters=parameters)
    inputs = ["good", {"parameters": parameters}]
    good, bad = await arun_noukai_jobs(credentials, FLOW, inputs, raise_on="none")
    assert (good.output, type(bad.error)) == ({"message": "good"}, InvalidInputError)
    assert emulator.control.counts()["submit"] == 1


class Echo(BaseModel):
    """What the flow should return."""

    message: str
    points: int


@pytest.mark.parametrize("run", [one, many])
@pytest.mark.parametrize("caller", [flow, lambda run: run], ids=["in a flow", "without a flow"])
async def test_retry_after_an_invalid_output(
    credentials: NoukaiCredentials,
    emulator: Emulator,
    caller: Callable[..., Any],
    run: Callable[..., Awaitable[Any]],
) -> None:
    """After a job whose output is not of the type, which the error says, the retry submits a new one."""
    emulator.control.script("grade-3", result={"message": "hello"})
    with pytest.raises(Exception, match=r"no Echo: points|did not complete") as raised:
        await caller(run)(credentials, output_type=Echo)
    (error,) = getattr(raised.value, "exceptions", (raised.value,))
    assert isinstance(error, JobOutputInvalidError)
    first, second = emulator.control.jobs()
    assert first["session_id"] != second["session_id"]
    assert (error.job_id, error.fields) == (second["id"], ("points",))


async def test_typed_outputs(credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """An output of the type is an instance of it, from each task."""
    emulator.control.script("grade-3", result={"message": "hello", "points": 3})
    expected = Echo(message="hello", points=3)
    assert await one(credentials, output_type=Echo) == expected
    assert [outcome.output for outcome in await many(credentials, output_type=Echo)] == [expected]
    job_id = await asubmit_noukai_job(credentials, FLOW, "hello")
    assert await await_for_noukai_job(credentials, FLOW, job_id, output_type=Echo) == expected
