"""Every way in which a flow can run a Noukai job.

The name of a Noukai flow has the job's fate and the text that must be found where messages go. Errors are
written to files with the local variables of each frame, as some error reports contain them.
"""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import INPUTS

from noukai_prefect import (
    NoukaiCredentials,
    NoukaiJob,
    NoukaiJobRun,
    arun_noukai_job,
    arun_noukai_jobs,
    asubmit_noukai_job,
    await_for_noukai_job,
    cancel_noukai_jobs,
    log_resumable_noukai_jobs,
    run_noukai_job,
    run_noukai_jobs,
)

HOME = Path(os.environ["PREFECT_HOME"])


def noukai_flow(name: str, sign: str) -> str:
    return f"acme/tests/{name.replace('_', '-')}-{sign}"


def write_report(name: str, error: BaseException) -> None:
    """Write an error report with local variables."""
    reported = traceback.TracebackException.from_exception(error, capture_locals=True)
    folder = HOME / "frames"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.txt").write_text("".join(reported.format()))


@flow
async def everything(sign: str) -> None:
    """Run a job in each way, and write a file with how each ended."""
    good, echo, bad, org = [
        await NoukaiCredentials.aload(name) for name in ("default", "echo", "bad-key", "bad-org")
    ]

    def job(name: str, credentials: NoukaiCredentials = good, **options: Any) -> Awaitable[Any]:
        return arun_noukai_job(credentials, noukai_flow(name, sign), sign, poll_interval=0.5, **options)

    async def in_two_steps() -> Any:
        name = noukai_flow("in_two_steps", sign)
        return await await_for_noukai_job(good, name, await asubmit_noukai_job(good, name, sign))

    async def by_block() -> Any:
        block = NoukaiJob(credentials=good, flow=noukai_flow("by_block", sign), message=sign)
        run = await block.atrigger()
        get_run_logger().info("%r", run)
        return await run.afetch_result()

    def batch(credentials: NoukaiCredentials, name: str) -> Awaitable[Any]:
        return arun_noukai_jobs(credentials, noukai_flow(name, sign), [sign, f"{sign} again"])

    ways = {
        "completed": job("completed", trace=True),
        "failed": job("failed"),
        "cancelled": job("cancelled"),
        "refused_key": job("refused_key"),
        "refused_key_later": job("refused_key_later"),
        "refused_model_key": job("refused_model_key"),
        "web_page_later": job("web_page_later"),
        "redirected": job("redirected", timeout=3),
        "redirected_later": job("redirected_later", timeout=3),
        "deadline": job("deadline", timeout=2),
        "bad_key": job("bad_key", bad),
        "bad_org": job("bad_org", org),
        "echo_refused": job("echo_refused", echo),
        "echo_failed": job("echo_failed", echo),
        "echo_completed": job("echo_completed", echo, trace=True),
        "in_two_steps": in_two_steps(),
        "by_block": by_block(),
        "batch": batch(good, "batch"),
        "batch_failed": batch(good, "batch_failed"),
        "batch_refused": batch(good, "batch_refused"),
        "batch_echo_failed": batch(echo, "echo_failed"),
    }
    outcomes = await asyncio.gather(*ways.values(), return_exceptions=True)
    ends: dict[str, str] = {}
    for name, outcome in zip(ways, outcomes, strict=True):
        ends[name] = type(outcome).__name__ if isinstance(outcome, BaseException) else "completed"
        if isinstance(outcome, BaseException):
            write_report(name, outcome)
    (HOME / "ends.json").write_text(json.dumps(ends))


@flow
def failing(sign: str) -> Any:
    """Delegate a job to a task worker, and fail in a thread, with a traceback in the log."""
    credentials = NoukaiCredentials.load("default")
    run_noukai_job.delay(credentials, noukai_flow("delayed", sign), sign)
    return run_noukai_job.submit(credentials, noukai_flow("failing", sign), sign).result()


@flow(on_cancellation=[cancel_noukai_jobs], on_crashed=[log_resumable_noukai_jobs])
async def endless(sign: str) -> Any:
    credentials = await NoukaiCredentials.aload("default")
    return await arun_noukai_job(credentials, noukai_flow("endless", sign), sign)


# What Prefect stores of a flow run may contain the arguments and results of its tasks.


@task(persist_result=True)
def triggered(credentials: NoukaiCredentials, sign: str) -> NoukaiJobRun:
    run = NoukaiJob(credentials=credentials, flow=noukai_flow("kept", sign), message=sign).trigger()
    run.wait_for_completion()
    return run


@task(persist_result=True, cache_policy=INPUTS)
def remembered(credentials: NoukaiCredentials, sign: str) -> Any:
    return [outcome.output for outcome in run_noukai_jobs(credentials, noukai_flow("kept", sign), [sign])]


@task(persist_result=True)
def given_back(credentials: NoukaiCredentials) -> NoukaiCredentials:
    return credentials


@task(persist_result=True)
def raised(credentials: NoukaiCredentials, sign: str) -> Any:
    return run_noukai_job(credentials, noukai_flow("failed", sign), sign)


@flow(persist_result=True)
def kept(credentials: NoukaiCredentials, sign: str) -> Any:
    """Persist everything that Prefect can persist."""
    outputs = remembered(credentials, sign)
    raised(credentials, sign, return_state=True)
    return [triggered(credentials, sign), given_back(credentials), outputs]
