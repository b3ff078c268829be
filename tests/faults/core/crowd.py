"""A crowd that runs jobs with either client of the core, each in a thread or in a task."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar
from uuid import uuid4

from noukai_core import (
    APIError,
    AsyncNoukai,
    JobCancelledError,
    JobFailedError,
    JobTimeoutError,
    Noukai,
    PermanentError,
    Submission,
    SubmissionUnknownError,
)
from tests.faults.balance import Report
from tests.faults.core.refusing import AsyncRefusing, Refusing, subject
from tests.faults.jobs import FLOW, Plan
from tests.faults.kinds import REQUEST_SECONDS

T = TypeVar("T")

_TIMEOUT_WITH_ENDLESS_MS = 3000
_MOST_TRIES = 20


def options(base_url: str) -> dict[str, Any]:
    """Return how the clients of these runs are made."""
    return {
        "api_key": f"nk_test_{uuid4().hex}",  # unique: all clients of a key share their rate limit
        "base_url": base_url,
        "timeout": REQUEST_SECONDS,
        "recovery_timeout": 3 * REQUEST_SECONDS,
        "max_polls_per_second": 200,  # what a local Noukai can serve on one core beside its clients
        "max_concurrent_submissions": 64,
    }


def run_sync(base_url: str, plans: list[Plan], refused: float = 0.0) -> tuple[list[Report], float]:
    """Run each job in a thread; return the reports, and the share of refused requests."""
    transport = Refusing(refused)
    with (
        Noukai(**options(base_url), transport=transport) as client,
        ThreadPoolExecutor(len(plans)) as threads,
    ):
        flow = client.flow(FLOW)
        reports = list(threads.map(lambda plan: _driven(_story(flow, plan)), plans))
    return reports, transport.refusals.share


def run_async(base_url: str, plans: list[Plan], refused: float = 0.0) -> tuple[list[Report], float]:
    """Run each job in a task; return the reports, and the share of refused requests."""
    transport = AsyncRefusing(refused)

    async def run() -> list[Report]:
        async with AsyncNoukai(**options(base_url), transport=transport) as client:
            flow = client.flow(FLOW)
            return await asyncio.gather(*(_story(flow, plan) for plan in plans))

    return asyncio.run(run()), transport.refusals.share


DRIVERS: dict[str, Callable[..., tuple[list[Report], float]]] = {"sync": run_sync, "async": run_async}


async def _story(flow: Any, plan: Plan) -> Report:
    """Submit a job, wait for its end, and cancel it when it never comes."""
    subject.set(plan.message)
    job = await submitted(flow, plan)
    try:
        endless = plan.outcome == "never"
        result = await _awaited(job.wait(timeout_ms=_TIMEOUT_WITH_ENDLESS_MS if endless else None))
        assert result.output == {"message": plan.message}, "this is the output of another job"
        state = "completed"
    except JobFailedError:
        state = "failed"
    except JobCancelledError:
        state = "cancelled"
    except JobTimeoutError:
        await _persistently(job.cancel)
        state = "cancelled"
    return Report(plan.message, job.id, state)


async def submitted(flow: Any, plan: Plan) -> Any:
    """Submit as a task with retries does: under the same identity again.

    An error other than `SubmissionUnknownError` says that there is no job; the emulator shows two if it lies.
    """
    submission = Submission.new()
    for _ in range(_MOST_TRIES):
        try:
            return await _awaited(flow.job(plan.message, parameters=plan.parameters, submission=submission))
        except SubmissionUnknownError as unknown:
            submission = unknown.submission
        except PermanentError:
            raise
        except APIError:
            submission = replace(submission, last_sent_at=None)
    raise AssertionError(f"{plan.message} was not taken in {_MOST_TRIES} tries")


async def _persistently(act: Callable[[], Any]) -> None:
    for _ in range(_MOST_TRIES):
        try:
            return await _awaited(act())
        except PermanentError:
            raise
        except APIError:
            continue
    raise AssertionError(f"{act} did not succeed in {_MOST_TRIES} tries")


async def _awaited(value: Any) -> Any:
    """Return the value of either client; the async one's has to be awaited."""
    return await value if inspect.isawaitable(value) else value


def _driven(story: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of the blocking client, which never waits for a loop."""
    try:
        story.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("a blocking client does not yield")
