"""Each way in which a Prefect flow can run Noukai jobs.

The parameter of each flow is the Noukai flow. As a script, `call_styles.py FLOW NOUKAI_FLOW` runs one without
a deployment.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
import sys
import time
from typing import Any

from prefect import flow, task, unmapped
from prefect.task_runners import ProcessPoolTaskRunner

from noukai_prefect import (
    NoukaiCredentials,
    NoukaiJob,
    arun_noukai_job,
    arun_noukai_jobs,
    asubmit_noukai_job,
    await_for_noukai_job,
    run_noukai_job,
    run_noukai_jobs,
    stream_noukai_jobs,
    submit_noukai_job,
    wait_for_noukai_job,
)

TEXTS = ["a", "b", "c"]


def credentials() -> NoukaiCredentials:
    return NoukaiCredentials.load("default", _sync=True)  # type: ignore[call-arg]


@flow
async def awaited(flow: str) -> Any:
    return await arun_noukai_job(credentials(), flow, "a")


def lose_a_signal(flow_run: asyncio.Task[Any] | None) -> None:
    """Keep the main thread in callbacks of the event loop, which reports what a signal raises there.

    A signal that strikes the event loop itself cancels the flow run, which is then no longer slowed down.
    """
    time.sleep(0.02)
    if flow_run is not None and not flow_run.cancelling():
        asyncio.get_running_loop().call_soon(lose_a_signal, flow_run)


@flow
async def unheard(flow: str) -> Any:
    lose_a_signal(asyncio.current_task())
    return await arun_noukai_job(credentials(), flow, "a")


@flow
async def unheard_stream(flow: str) -> Any:
    lose_a_signal(asyncio.current_task())
    return [outcome.output async for outcome in stream_noukai_jobs(credentials(), flow, TEXTS)]


@flow
async def gathered(flow: str) -> Any:
    return await asyncio.gather(*(arun_noukai_job(credentials(), flow, text) for text in TEXTS))


@flow
def called(flow: str) -> Any:
    return run_noukai_job(credentials(), flow, "a")


@flow
async def called_in_async_flow(flow: str) -> Any:
    return run_noukai_job(credentials(), flow, "a")


@flow
def submitted(flow: str) -> Any:
    return run_noukai_job.submit(credentials(), flow, "a").result()


@flow
async def async_submitted(flow: str) -> Any:
    return arun_noukai_job.submit(credentials(), flow, "a").result()


@flow
def mapped(flow: str) -> Any:
    return run_noukai_job.map(unmapped(credentials()), unmapped(flow), TEXTS).result()


@flow
async def async_mapped(flow: str) -> Any:
    return arun_noukai_job.map(unmapped(credentials()), unmapped(flow), TEXTS).result()


@flow(task_runner=ProcessPoolTaskRunner(max_workers=2))
def process_mapped(flow: str) -> Any:
    return run_noukai_job.map(unmapped(credentials()), unmapped(flow), TEXTS[:2]).result()


@flow
def two_steps(flow: str) -> Any:
    return wait_for_noukai_job(credentials(), flow, submit_noukai_job(credentials(), flow, "a"))


@flow
async def async_two_steps(flow: str) -> Any:
    return await await_for_noukai_job(credentials(), flow, await asubmit_noukai_job(credentials(), flow, "a"))


@flow
def block(flow: str) -> Any:
    run = NoukaiJob(credentials=credentials(), flow=flow, message="a").trigger()
    run.wait_for_completion()
    return run.fetch_result()


@flow
async def async_block(flow: str) -> Any:
    run = await NoukaiJob(credentials=credentials(), flow=flow, message="a").atrigger()
    await run.await_for_completion()
    return await run.afetch_result()


@task
def use_block(flow: str) -> Any:
    return NoukaiJob(credentials=credentials(), flow=flow, message="a").trigger().fetch_result()["message"]


@flow
def submitted_block(flow: str) -> Any:
    return use_block.submit(flow).result()


@flow
def batch(flow: str) -> Any:
    return [outcome.output for outcome in run_noukai_jobs(credentials(), flow, TEXTS)]


@flow
async def async_batch(flow: str) -> Any:
    return [outcome.output for outcome in await arun_noukai_jobs(credentials(), flow, TEXTS)]


@flow
def submitted_batch(flow: str) -> Any:
    return [outcome.output for outcome in run_noukai_jobs.submit(credentials(), flow, TEXTS).result()]


@flow
async def parent(flow: str) -> Any:
    return await awaited(flow)


if __name__ == "__main__":
    # A shell ignores interrupts in background processes, and their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    outcome = globals()[sys.argv[1]](sys.argv[2])
    if inspect.isawaitable(outcome):
        asyncio.run(outcome)  # type: ignore[arg-type]
