"""What one poll of a job costs the processor, by the transport that carries it.

    .venv/airflow-peers/bin/python benchmarks/transports.py

One client per transport, each in a separate process and one after the other, polls 1,000 jobs of a local
Noukai over TLS: `POLLS` in total, `RATE` per second. The lowest processor time per poll of all rounds counts,
since the rest is the machine's noise. `bare` reads the body and parses it, nothing else. `core` is this
project's `Job.status`; `core_httpx` is the same over httpx's own transport.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
from local_services import local_services

from noukai_core import AsyncNoukai, Noukai
from noukai_core.emulator import EmulatorControl

KEY = "nk_test_benchmrk_0123456789abcdef0123456789abcdef"
FLOW = "acme/benchmark/jobs"
JOBS, POLLS, RATE, ROUNDS = 1000, 2000, 200, 3

Poll = Callable[[str], Awaitable[object]]


async def bare_aiohttp(stack: AsyncExitStack, base_url: str, context: ssl.SSLContext) -> Poll:
    import aiohttp

    headers = {"Authorization": f"Bearer {KEY}"}
    connector = aiohttp.TCPConnector(ssl=context, limit=100, keepalive_timeout=90)
    session = await stack.enter_async_context(aiohttp.ClientSession(headers=headers, connector=connector))

    async def poll(job_id: str) -> object:
        async with session.get(f"{base_url}/seq/{FLOW}/jobs/{job_id}") as response:
            return await response.json()

    return poll


async def bare_httpx(
    stack: AsyncExitStack, base_url: str, context: ssl.SSLContext, library: str = "httpx"
) -> Poll:
    httpx: Any = import_module(library)
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=90)
    transport = await stack.enter_async_context(httpx.AsyncHTTPTransport(verify=context, limits=limits))

    async def poll(job_id: str) -> object:
        request = httpx.Request(
            "GET", f"{base_url}/seq/{FLOW}/jobs/{job_id}", headers={"Authorization": f"Bearer {KEY}"}
        )
        response = await transport.handle_async_request(request)
        body = await response.aread()
        return json.loads(body)

    return poll


async def bare_httpx2(stack: AsyncExitStack, base_url: str, context: ssl.SSLContext) -> Poll:
    return await bare_httpx(stack, base_url, context, "httpx2")


async def core_httpx(stack: AsyncExitStack, base_url: str, context: ssl.SSLContext) -> Poll:
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=90)
    transport = httpx.AsyncHTTPTransport(verify=context, limits=limits)
    client = await stack.enter_async_context(AsyncNoukai(KEY, base_url=base_url, transport=transport))
    flow = client.flow(FLOW)
    return lambda job_id: flow.attach(job_id).status()


async def core(stack: AsyncExitStack, base_url: str, context: ssl.SSLContext) -> Poll:
    client = await stack.enter_async_context(AsyncNoukai(KEY, base_url=base_url))
    flow = client.flow(FLOW)
    return lambda job_id: flow.attach(job_id).status()


TRANSPORTS = {each.__name__: each for each in (bare_aiohttp, bare_httpx, bare_httpx2, core_httpx, core)}


async def measure(name: str, base_url: str, certificate: str, jobs: list[str]) -> float:
    """Return the processor seconds of one poll."""
    context = ssl.create_default_context(cafile=certificate)
    async with AsyncExitStack() as stack:
        poll = await TRANSPORTS[name](stack, base_url, context)
        await asyncio.gather(*(poll(job) for job in jobs[:20]))
        began, spent = time.monotonic(), time.process_time()

        async def wait(place: int) -> None:
            for turn in range(POLLS // JOBS):
                due = began + (turn * JOBS + place) / RATE
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await poll(jobs[place])

        await asyncio.gather(*(wait(place) for place in range(JOBS)))
        return (time.process_time() - spent) / POLLS


def main() -> None:
    """Measure one transport if it is named, otherwise each in a separate process, and print the table."""
    if len(sys.argv) > 1:
        name, base_url, certificate = sys.argv[1:]
        print(asyncio.run(measure(name, base_url, certificate, json.load(sys.stdin))))
        return
    with tempfile.TemporaryDirectory() as folder, local_services(Path(folder)) as (address, certificates):
        base_url = f"https://{address}/api/v1"
        jobs = submit(base_url, certificates)
        spent: dict[str, list[float]] = {name: [] for name in TRANSPORTS}
        for _ in range(ROUNDS):
            for name, seconds in spent.items():
                command = [sys.executable, __file__, name, base_url, certificates]
                done = subprocess.run(
                    command, input=json.dumps(jobs), stdout=subprocess.PIPE, text=True, check=True
                )
                seconds.append(float(done.stdout))
    peer = min(spent["bare_aiohttp"])
    for name, seconds in spent.items():
        print(f"{name:14} {min(seconds) * 1e6:6.0f} µs per poll {min(seconds) / peer:6.2f} x bare aiohttp")


def submit(base_url: str, certificates: str) -> list[str]:
    """Submit jobs that run for an hour, and return their ids."""
    control = EmulatorControl(base_url, verify=ssl.create_default_context(cafile=certificates))
    control.script("*", after_seconds=3600)
    control.close()
    os.environ["SSL_CERT_FILE"] = certificates
    with Noukai(KEY, base_url=base_url) as client:
        flow = client.flow(FLOW)
        return [flow.job("a job").id for _ in range(JOBS)]


if __name__ == "__main__":
    main()
