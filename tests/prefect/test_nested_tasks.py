"""Tasks of this package that a user's own task or flow calls: its timeout and its end are theirs as well."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from prefect import flow, task
from prefect.cache_policies import INPUTS

from devtools.processes import wait_until
from noukai_prefect import (
    NoukaiCredentials,
    arun_noukai_job,
    arun_noukai_jobs,
    run_noukai_job,
    run_noukai_jobs,
)

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

pytestmark = pytest.mark.usefixtures("prefect_server")

FLOW = "acme/spelling/grade-3"
LIMITS = (3.0, 12.0, 48.0)  # in turn, until the machine is quick enough to submit the job within the limit


@pytest.fixture
def endless(emulator: Emulator) -> Emulator:
    """A local Noukai whose jobs run until they are cancelled."""
    emulator.control.script("grade-3", outcome="never")
    return emulator


def task_calls_task(credentials: NoukaiCredentials, seconds: float) -> None:
    @task(timeout_seconds=seconds)
    def outer() -> None:
        run_noukai_job(credentials, FLOW, "a")

    outer()


def submitted_task_calls_task(credentials: NoukaiCredentials, seconds: float) -> None:
    @task(timeout_seconds=seconds)
    def outer() -> None:
        run_noukai_job(credentials, FLOW, "a")

    outer.submit().result()


def submitted_task_calls_batch(credentials: NoukaiCredentials, seconds: float) -> None:
    @task(timeout_seconds=seconds)
    def outer() -> None:
        run_noukai_jobs(credentials, FLOW, ["a"])

    outer.submit().result()


async def async_task_calls_task(credentials: NoukaiCredentials, seconds: float) -> None:
    @task(timeout_seconds=seconds)
    async def outer() -> None:
        await arun_noukai_job(credentials, FLOW, "a")

    await outer()


async def async_task_calls_batch(credentials: NoukaiCredentials, seconds: float) -> None:
    @task(timeout_seconds=seconds)
    async def outer() -> None:
        await arun_noukai_jobs(credentials, FLOW, ["a"])

    await outer()


def flow_calls_flow(credentials: NoukaiCredentials, seconds: float) -> None:
    @flow
    def inner() -> None:
        run_noukai_job(credentials, FLOW, "a")

    @flow(timeout_seconds=seconds)
    def outer() -> None:
        inner()

    outer()


def flow_calls_flow_that_submits(credentials: NoukaiCredentials, seconds: float) -> None:
    @flow
    def inner() -> None:
        run_noukai_job.submit(credentials, FLOW, "a").result()

    @flow(timeout_seconds=seconds)
    def outer() -> None:
        inner()

    outer()


async def async_flow_calls_flow(credentials: NoukaiCredentials, seconds: float) -> None:
    @flow
    async def inner() -> None:
        await arun_noukai_job(credentials, FLOW, "a")

    @flow(timeout_seconds=seconds)
    async def outer() -> None:
        await inner()

    await outer()


def task_calls_flow(credentials: NoukaiCredentials, seconds: float) -> None:
    @flow
    def inner() -> None:
        run_noukai_job(credentials, FLOW, "a")

    @task(timeout_seconds=seconds)
    def outer() -> None:
        inner()

    outer()


@pytest.mark.parametrize(
    "style",
    [
        task_calls_task,
        submitted_task_calls_task,
        submitted_task_calls_batch,
        async_task_calls_task,
        async_task_calls_batch,
        flow_calls_flow,
        flow_calls_flow_that_submits,
        async_flow_calls_flow,
        task_calls_flow,
    ],
)
def test_the_timeout_of_a_caller(
    credentials: NoukaiCredentials, endless: Emulator, style: Callable[..., Any]
) -> None:
    """The timeout of a task or flow that calls the task cancels the job, as the task's own does."""

    @flow
    def blocking(seconds: float) -> None:
        style(credentials, seconds)

    @flow
    async def asynchronous(seconds: float) -> None:
        await style(credentials, seconds)

    run: Any = asynchronous if style.__name__.startswith("async") else blocking
    for seconds in LIMITS:
        with pytest.raises(TimeoutError):
            _finish(run(seconds))
        if endless.control.jobs():
            break
    assert [job["state"] for job in endless.control.jobs()] == ["cancelled"]


@pytest.mark.parametrize("submitted", [False, True], ids=["called", "submitted"])
@pytest.mark.parametrize("called", [run_noukai_job, run_noukai_jobs], ids=["job", "batch"])
def test_a_timeout_that_cancels_no_job(
    credentials: NoukaiCredentials, endless: Emulator, called: Any, submitted: bool
) -> None:
    """With `cancel_on_timeout=False`, Prefect's timeout ends the task and leaves its job running."""
    given = "a" if called is run_noukai_job else ["a"]

    @flow
    def limited(seconds: float) -> None:
        of_limited_time = called.with_options(timeout_seconds=seconds)
        if submitted:
            of_limited_time.submit(credentials, FLOW, given, cancel_on_timeout=False).result()
        else:
            of_limited_time(credentials, FLOW, given, cancel_on_timeout=False)

    for seconds in LIMITS:
        with pytest.raises(TimeoutError):
            limited(seconds)
        if endless.control.jobs():
            break
    assert endless.control.jobs()
    assert endless.control.counts()["cancel"] == 0


def _finish(outcome: Any) -> Any:
    return asyncio.run(outcome) if inspect.isawaitable(outcome) else outcome


@pytest.mark.parametrize("called", [run_noukai_job, run_noukai_jobs], ids=["job", "batch"])
def test_a_person_ends_a_submitted_task_that_calls_the_task(
    credentials: NoukaiCredentials, endless: Emulator, called: Any
) -> None:
    """The caller neither gets a state as an output, which would be cached, nor submits in a retry."""
    given = "a" if called is run_noukai_job else ["a"]
    outputs: list[Any] = []

    @task(retries=2, cache_policy=INPUTS)
    def outer(name: str) -> Any:
        outputs.append(called(credentials, FLOW, given))
        return outputs[-1]

    name = str(uuid4())

    @flow
    def interrupted() -> None:
        outer.submit(name)
        wait_until(lambda: any(endless.control.counts()[kind] for kind in ("poll", "session")), "a poll")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert outputs == []
    assert [job["state"] for job in endless.control.jobs()] == ["cancelled"]

    @flow
    def again() -> Any:
        return outer(name)

    endless.control.script("grade-3", outcome="completed", after_polls=1, result="done")
    output = again()
    assert (output if called is run_noukai_job else output[0].output) == "done"
