"""One shape of `prefect_jobs.py`, in a separate process: `prefect_shapes.py SHAPE JOBS BASE_URL`."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, unmapped
from pydantic import SecretStr

from noukai_prefect import NoukaiCredentials, arun_noukai_job, arun_noukai_jobs, run_noukai_job

FLOW = "acme/benchmark/jobs"
KEY = "nk_test_benchmrk_0123456789abcdef0123456789abcdef"
MAX_POLLS_PER_SECOND = 100
MAX_CONCURRENCY = 16


def messages(jobs: int) -> list[str]:
    return [f"job {number}" for number in range(jobs)]


@flow
async def batch(credentials: NoukaiCredentials, jobs: int) -> int:
    outcomes = await arun_noukai_jobs(
        credentials, FLOW, messages(jobs), max_polls_per_second=MAX_POLLS_PER_SECOND
    )
    return len(outcomes)


@flow
async def gather(credentials: NoukaiCredentials, jobs: int) -> int:
    return len(await asyncio.gather(*(arun_noukai_job(credentials, FLOW, text) for text in messages(jobs))))


@flow
def mapped(credentials: NoukaiCredentials, jobs: int) -> int:
    return len(run_noukai_job.map(unmapped(credentials), unmapped(FLOW), messages(jobs)).result())


@flow
async def mapped_async(credentials: NoukaiCredentials, jobs: int) -> int:
    return len(arun_noukai_job.map(unmapped(credentials), unmapped(FLOW), messages(jobs)).result())


async def bare(base_url: str, jobs: int) -> int:
    """Submit all jobs, then poll them one after the other at the same rate, until all have ended."""
    headers = {"Authorization": f"Bearer {KEY}"}
    address = f"{base_url}/seq/{FLOW}/jobs"
    room = asyncio.Semaphore(MAX_CONCURRENCY)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(headers=headers, limits=limits, trust_env=False) as session:

        async def submit(text: str) -> str:
            async with room:
                return str((await session.post(address, json={"message": text})).json()["executionId"])

        waiting = set(await asyncio.gather(*(submit(text) for text in messages(jobs))))
        polls: set[asyncio.Task[None]] = set()

        async def poll(job_id: str) -> None:
            if (await session.get(f"{address}/{job_id}")).json()["status"] == "completed":
                waiting.discard(job_id)

        while waiting:
            for job_id in list(waiting):
                task = asyncio.create_task(poll(job_id))
                polls.add(task)
                task.add_done_callback(polls.discard)
                await asyncio.sleep(1 / MAX_POLLS_PER_SECOND)
        await asyncio.gather(*polls)
    return jobs


class Connections(threading.Thread):
    """Counts the connections to the local Noukai twice a second, and keeps the largest number."""

    def __init__(self, base_url: str) -> None:
        super().__init__(daemon=True)
        self._port = f"{httpx.URL(base_url).port:04X}"
        self.most = 0

    def run(self) -> None:
        while True:
            lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
            remote_and_state = [line.split()[2:4] for line in lines]
            count = sum(
                remote.endswith(f":{self._port}") and state == "01" for remote, state in remote_and_state
            )
            self.most = max(self.most, count)
            time.sleep(0.5)


def main(shape: str, jobs: int, base_url: str) -> None:
    """Run one shape, and print what it took."""
    credentials = NoukaiCredentials(api_key=SecretStr(KEY), base_url=base_url)
    connections = Connections(base_url)
    connections.start()
    began, before = time.monotonic(), time.process_time()
    if shape == "bare":
        done: Any = asyncio.run(bare(base_url, jobs))
    elif shape == "map":
        done = mapped(credentials, jobs)
    else:
        chosen: Any = {"batch": batch, "gather": gather, "map-async": mapped_async}[shape]
        done = asyncio.run(chosen(credentials, jobs))
    assert done == jobs
    seen = {
        "wall": time.monotonic() - began,
        "cpu": time.process_time() - before,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "connections": connections.most,
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
