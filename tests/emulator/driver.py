"""One interface to the emulator for the contract suite: in this process, or over a socket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

FLOW = "seq/acme/spelling/grade-3"
BEGIN = 1_800_000_000.0


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = BEGIN

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Driver:
    """Calls the API with a valid key, and the control API."""

    client: httpx.AsyncClient
    clock: Clock

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(path, **options)

    async def post(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.post(path, **options)

    async def submit(self, flow: str = FLOW, headers: dict[str, str] | None = None, **body: Any) -> str:
        response = await self.post(f"{flow}/jobs", json=body or {"message": "hello"}, headers=headers)
        assert response.status_code == 202, response.text
        return str(response.json()["executionId"])

    async def poll(self, job_id: str, flow: str = FLOW) -> dict[str, Any]:
        response = await self.get(f"{flow}/jobs/{job_id}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def control(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        response = await self.command(method, path, body, **params)
        assert response.status_code == 200, response.text
        return response.json()

    async def command(self, method: str, path: str, body: Any = None, **params: Any) -> httpx.Response:
        url = self.client.base_url.copy_with(raw_path=f"/_emulator/{path}".encode())
        return await self.client.request(method, url, json=body, params=params)

    async def script(self, flow: str = "grade-3", **spec: Any) -> None:
        await self.control("POST", "script", {"flow": flow, **spec})

    async def fault(self, kind: str, **options: Any) -> None:
        await self.control("POST", "faults", {"kind": kind, **options})

    async def job(self, job_id: str) -> dict[str, Any]:
        return dict(await self.control("GET", f"jobs/{job_id}"))


def code(response: httpx.Response) -> tuple[int, str]:
    """The status of a rejection, and the server's code for it."""
    return response.status_code, response.json()["detail"]["code"]
