"""What the worst responses cost a triggerer, and the thousand triggers beside the job that gets them.

    .venv/airflow/bin/python benchmarks/hostile.py [kinds neighbours]

- kinds: for each kind of response, a poll as a trigger makes it, which reads 1 MiB, and a poll as a worker
  makes it, which reads all: the peak of memory and the longest pause of the event loop, beside those of
  `json.loads` of the same body in the same run. Pauses are the shortest of three runs.
- neighbours: a thousand triggers of one connection, polled every ten seconds, first alone, then beside one
  trigger whose server sends the worst response of each kind in turn, up to four times a second. The delay of
  a poll is the time since the job's previous poll, less the interval. `pause` is the longest pause of the
  event loop in processor time, which other processes do not prolong.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import multiprocessing
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import structlog

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from noukai_airflow._connection import ConnectionSettings
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.triggers.noukai import NoukaiJobTrigger
from noukai_core import AsyncNoukai, JobStatus, NoukaiError
from tests.fuzz.hostile_responses import bodies, responses

KEY = "nk_test_benchmrk_0123456789abcdef0123456789abcdef"
FLOW = "acme/benchmark/jobs"
MEGABYTE = 1024 * 1024
SIZE = 8 * MEGABYTE
TRIGGERS, INTERVAL, HOSTILE_INTERVAL = 1000, 10.0, 0.25
SETTLE, STEADY = 15.0, 45.0
RUNS = 3
RUNNING = b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"status":"running"}'


@dataclass(frozen=True)
class Cost:
    """What one response took: bytes of memory at the peak, and the longest pause in seconds."""

    peak: int
    pause: float

    def __str__(self) -> str:
        return f"{self.peak / 1e6:>10.1f}{self.pause * 1e3:>10.1f}"


class Server:
    """A process that responds to `jobs/N` with a prepared response, and to any other job that it is running.

    Args:
        prepared: The responses. The job `worst` gets each in turn.
    """

    def __init__(self, prepared: list[bytes]) -> None:
        self._prepared = prepared
        self._polls: dict[str, list[float]] = {}
        self._turn = 0
        fork = multiprocessing.get_context("fork")
        self._pipe, self._other = fork.Pipe()
        self._process = fork.Process(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._process.start()
        self.base_url = f"http://127.0.0.1:{self._pipe.recv()}/api/v1"

    def stop(self) -> dict[str, list[float]]:
        """End the process, and return when each job was polled."""
        self._pipe.send(None)
        polls: dict[str, list[float]] = self._pipe.recv()
        self._process.join()
        return polls

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._other.send(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(self._other.recv)
        self._other.send(self._polls)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                job = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].rpartition(b"/")[2].decode()
                response = self._response(job)
                for begin in range(0, len(response), MEGABYTE):
                    writer.write(response[begin : begin + MEGABYTE])
                    await writer.drain()
        writer.close()

    def _response(self, job: str) -> bytes:
        if job.isdigit():
            return self._prepared[int(job)]
        self._polls.setdefault(job, []).append(time.monotonic())
        if job != "worst":
            return RUNNING
        self._turn += 1
        return self._prepared[self._turn % len(self._prepared)]


async def poll(base_url: str, job: int, *, state_only: bool) -> JobStatus | NoukaiError:
    """Poll a job once."""
    options: dict[str, Any] = {"retry_timeout": 0.01, "timeout": 20, "max_response_bytes": 64 * MEGABYTE}
    async with AsyncNoukai(KEY, base_url=base_url, **options) as client:
        handle = client.flow(FLOW).attach(str(job))
        try:
            if state_only:
                return await anext(handle.watch(timeout=20, max_poll_bytes=MEGABYTE))
            return await handle.status()
        except NoukaiError as error:
            return error


async def paused(act: Callable[[], Any]) -> float:
    """Return the longest pause of the event loop while something is awaited, in seconds.

    What counts is the time of this process, its threads included, which other processes do not prolong.
    """
    longest, last = 0.0, time.process_time()

    async def beat() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.001)
            now = time.process_time()
            longest, last = max(longest, now - last), now

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0.01)
    await act()
    await asyncio.sleep(0.01)
    beating.cancel()
    return longest


def peak_of(act: Callable[[], Any]) -> int:
    """Return the peak of memory while something runs, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def loads(body: bytes) -> None:
    """Parse a body with the standard library, which gives up at deep nesting."""
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(body)


def seconds_of(act: Callable[[], Any]) -> float:
    """Return the shortest of some runs, in seconds."""
    spent = []
    for _ in range(RUNS):
        began = time.process_time()
        act()
        spent.append(time.process_time() - began)
    return min(spent)


def cost_of_poll(base_url: str, job: int, *, state_only: bool) -> Cost:
    """Return what a poll costs."""

    async def act() -> None:
        await poll(base_url, job, state_only=state_only)

    asyncio.run(act())  # what only the first one takes
    gc.collect()
    pause = min(asyncio.run(paused(act)) for _ in range(RUNS))
    return Cost(peak_of(lambda: asyncio.run(act())), pause)


def cost_of_loads(body: bytes) -> Cost:
    """Return what the standard library takes for a body."""
    return Cost(peak_of(lambda: loads(body)), seconds_of(lambda: loads(body)))


def kinds() -> None:
    """Print the table of the kinds."""
    prepared, plain = responses(SIZE), bodies(SIZE)
    server = Server(list(prepared.values()))
    print(f"{'':34}{'trigger':>20}{'worker':>20}{'json.loads':>20}")
    print(f"{f'{SIZE // MEGABYTE} MiB':34}" + f"{'MB':>10}{'pause ms':>10}" * 3 + "   worker / json.loads")
    for job, name in enumerate(prepared):
        costs = [cost_of_poll(server.base_url, job, state_only=True)]
        costs.append(cost_of_poll(server.base_url, job, state_only=False))
        ratios = ""
        if (body := plain.get(name)) is not None:
            costs.append(cost_of_loads(body))
            worker, standard = costs[1:]
            # The body itself is in the peak of a poll only.
            ratios = (
                f"{worker.peak / (standard.peak + len(body)):>10.2f}{worker.pause / standard.pause:>10.2f}"
            )
        print(f"{name:34}" + "".join(map(str, costs)) + ratios, flush=True)
    server.stop()


async def neighbours_of(prepared: list[bytes] | None) -> tuple[list[float], float]:
    """Let a thousand triggers wait, beside one with hostile responses or alone.

    Returns:
        The delays of their polls, and the longest pause of the event loop.
    """
    server = Server(prepared or [RUNNING])
    extra = {"max_polls_per_second": 150}
    settings = {
        conn_id: ConnectionSettings.of(conn_id, password=key, host=server.base_url, extra=extra)
        for conn_id, key in (("good", KEY), ("worst", KEY.replace("benchmrk", "neighbor")))
    }

    async def read(hook: NoukaiHook) -> ConnectionSettings:
        return settings[hook.noukai_conn_id]

    async def wait(trigger: NoukaiJobTrigger) -> None:
        while True:  # a trigger ends with a response that it cannot use; the next job has the same server
            async for _ in trigger.run():
                pass

    with patch.object(NoukaiHook, "_read_connection", read):
        jobs = [NoukaiJobTrigger(f"job-{n}", FLOW, "good", poll_interval=INTERVAL) for n in range(TRIGGERS)]
        waiting = [asyncio.create_task(wait(trigger)) for trigger in jobs]
        await asyncio.sleep(SETTLE)
        if prepared:
            worst = NoukaiJobTrigger("worst", FLOW, "worst", poll_interval=HOSTILE_INTERVAL)
            waiting.append(asyncio.create_task(wait(worst)))
        began = time.monotonic()
        pause = await paused(lambda: asyncio.sleep(STEADY))
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    polls = server.stop()
    if prepared:
        print(f"{len(polls['worst'])} hostile responses of {len(prepared)} kinds", flush=True)
    delays = [
        later - earlier - INTERVAL
        for job, times in polls.items()
        if job != "worst"
        for earlier, later in itertools.pairwise(times)
        if later >= began
    ]
    return delays, pause


def neighbours() -> None:
    """Print the delays of a thousand triggers' polls."""
    prepared = list(responses(2 * MEGABYTE).values())
    print(f"{'':12}{'polls':>8}{'median s':>10}{'99 % s':>10}{'99.9 % s':>10}{'latest s':>10}{'pause s':>10}")
    rows: list[list[float]] = []
    for name, sent in (("alone", None), ("neighbour", prepared)):
        delays, pause = asyncio.run(neighbours_of(sent))
        share = statistics.quantiles(delays, n=1000)
        rows.append([statistics.median(delays), share[989], share[998], max(delays), pause])
        print(f"{name:12}{len(delays):>8}" + "".join(f"{value:>10.3f}" for value in rows[-1]), flush=True)


def main() -> None:
    """Print the tables that are named; both when none is."""
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for name in sys.argv[1:] or ["kinds", "neighbours"]:
        {"kinds": kinds, "neighbours": neighbours}[name]()


if __name__ == "__main__":
    main()
