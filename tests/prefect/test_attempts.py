"""A task retry finds what the earlier attempt submitted, and pays for nothing twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow

from noukai_core import InvalidInputError, JobTimeoutError
from noukai_prefect import NoukaiCredentials, arun_noukai_job, arun_noukai_jobs

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
