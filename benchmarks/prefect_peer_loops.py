"""One loop of `prefect_peers.py`, in a separate process: `prefect_peer_loops.py LOOP SECONDS ADDRESS`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
from prefect import flow
from pydantic import SecretStr

KEY = "nk_test_benchmrk_0123456789abcdef0123456789abcdef"
FLOW = "acme/benchmark/jobs"


@dataclass(frozen=True)
class Waited:
    """When the call returned and the job had ended, in seconds since the epoch, and for how many requests."""

    returned: float
    ended: float
    requests: int


@dataclass(frozen=True)
class Services:
    """The server of all loops."""

    address: str

    def request_json(self, method: str, path: str, **body: Any) -> Any:
        response = httpx.request(method, f"https://{self.address}/{path}", json=body or None)
        return response.raise_for_status().json()

    def begin(self, seconds: float) -> int:
        """Begin a job of either peer's service."""
        number: int = self.request_json("POST", "benchmark/runs", seconds=seconds)["number"]
        return number

    def waited(self, number: int, returned: float) -> Waited:
        return Waited(returned, **self.request_json("GET", f"benchmark/runs/{number}"))


def noukai(services: Services, seconds: float) -> Callable[[], Waited]:
    from noukai_prefect import NoukaiCredentials, run_noukai_job

    credentials = NoukaiCredentials(api_key=SecretStr(KEY), base_url=f"https://{services.address}/api/v1")
    message = f"job of process {os.getpid()}"
    services.request_json("POST", "_emulator/script", flow="*", after_seconds=seconds)

    @flow
    def waits() -> float:
        run_noukai_job(credentials, FLOW, message)
        return time.time()

    def wait() -> Waited:
        returned = waits()
        [job] = (job for job in services.request_json("GET", "_emulator/jobs") if job["message"] == message)
        counts = services.request_json("GET", f"_emulator/counts?job_id={job['id']}")
        began = datetime.fromisoformat(job["created_at"]).timestamp()
        return Waited(returned, began + seconds, sum(counts.values()))

    return wait


def dbt(services: Services, seconds: float) -> Callable[[], Waited]:
    from prefect_dbt.cloud import DbtCloudCredentials, DbtCloudJob
    from prefect_dbt.cloud.jobs import DbtCloudJobRun

    credentials = DbtCloudCredentials(api_key=SecretStr("key"), account_id=1, domain=services.address)
    job = DbtCloudJob(dbt_cloud_credentials=credentials, job_id=1)

    @flow
    def waits() -> tuple[int, float]:
        number = services.begin(seconds)
        DbtCloudJobRun(run_id=number, dbt_cloud_job=job).wait_for_completion()
        return number, time.time()

    return lambda: services.waited(*waits())


def databricks(services: Services, seconds: float) -> Callable[[], Waited]:
    from prefect_databricks import DatabricksCredentials
    from prefect_databricks.flows import jobs_runs_wait_for_completion

    credentials = DatabricksCredentials(databricks_instance=services.address, token=SecretStr("token"))

    @flow
    async def waits() -> tuple[int, float]:
        number = await asyncio.to_thread(services.begin, seconds)
        state, _ = await jobs_runs_wait_for_completion(number, credentials)
        assert state["result_state"] == "SUCCESS"
        return number, time.time()

    return lambda: services.waited(*asyncio.run(waits()))


def sleep(services: Services, seconds: float) -> Callable[[], Waited]:
    @flow
    def waits() -> float:
        time.sleep(seconds)
        return time.time()

    def wait() -> Waited:
        returned = waits()
        return Waited(returned, returned, 0)

    return wait


LOOPS = {"noukai": noukai, "dbt": dbt, "databricks": databricks, "sleep": sleep}


def main(name: str, seconds: float, address: str) -> None:
    """Let one loop wait for one job, and print what it took."""
    wait = LOOPS[name](Services(address), seconds)
    before = time.process_time()
    waited = wait()
    cpu = time.process_time() - before
    print(json.dumps({"requests": waited.requests, "lag": waited.returned - waited.ended, "cpu": cpu}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
