"""`EmulatorControl`: the control API from Python."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import EllipsisType, TracebackType
from typing import Any

import httpx


class EmulatorControl:
    """Tells an emulator how to behave, and asks it what it saw.

    It speaks HTTP, so the emulator may run in another process. It takes the same `base_url` as a client.

    Args:
        base_url: The emulator's address, such as `http://127.0.0.1:8080/api/v1`.
        verify: An `ssl.SSLContext` that trusts the emulator's certificate, when it was started with one.
    """

    def __init__(self, base_url: str, *, verify: ssl.SSLContext | bool = True) -> None:
        address = httpx.URL(base_url).copy_with(raw_path=b"/_emulator/")
        self._client = httpx.Client(base_url=address, timeout=30, trust_env=False, verify=verify)

    def script(self, flow: str, **spec: Any) -> None:
        """Let the jobs of a flow behave so, from the next submission on.

        Args:
            flow: The flow's slug, its whole path `org/project/slug`, or `*` for every flow.
            spec: What becomes of a job, and when: see `noukai_core.emulator`. It replaces an earlier one.
        """
        self._ask("POST", "script", {**spec, "flow": flow})

    def finish(self, job_id: str, outcome: str = "completed", **spec: Any) -> dict[str, Any]:
        """End a job now.

        Args:
            job_id: The job.
            outcome: `completed`, `failed` or `cancelled`.
            spec: `result` or `result_bytes`, or `error`, in place of what the script says.

        Returns:
            The job, as `jobs()` lists it.

        Raises:
            LookupError: There is no such job.
            ValueError: It has ended before.
        """
        job: dict[str, Any] = self._ask("POST", f"jobs/{job_id}/finish", {**spec, "outcome": outcome})
        return job

    def progress(self, job_id: str, progress: Mapping[str, Any]) -> None:
        """Let a job show this progress from now on."""
        self._ask("POST", f"jobs/{job_id}/progress", dict(progress))

    def fault(
        self,
        kind: str,
        *,
        on: str | None = None,
        times: int | EllipsisType | None = ...,
        flow: str | None = None,
        job_id: str | None = None,
        probability: float | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> int:
        """Let requests meet a fault. Of several, a request meets the one that was switched on first.

        Args:
            kind: The kind of fault: see `noukai_core.emulator`.
            on: Which calls: `submit`, `poll`, `cancel`, `session`, `verify`, `trace`, `stream`, `runs`, or
                `any`. By default the call that the kind is about, or any.
            times: How often, `None` for no end. By default once, or without end when a probability is given.
            flow: Only requests about this flow, by slug or whole path.
            job_id: Only requests about this job.
            probability: How likely each of these requests meets it, from 0 to 1. By default each does.
            seed: A whole number that chooses which requests those are, the same ones in every run with the
                same submissions.
            options: What the kind of fault takes.

        Returns:
            The fault's number, by which `faults()` lists it.
        """
        named = {"on": on, "flow": flow, "job_id": job_id, "probability": probability, "seed": seed}
        wanted: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        if times is not ...:
            wanted["times"] = times
        response: dict[str, int] = self._ask("POST", "faults", {"kind": kind, **wanted, **options})
        return response["id"]

    def faults(self) -> list[dict[str, Any]]:
        """List the faults that are switched on, each with the number of requests that have met it."""
        faults: list[dict[str, Any]] = self._ask("GET", "faults")
        return faults

    def clear_faults(self) -> None:
        """Switch all faults off."""
        self._ask("DELETE", "faults")

    def jobs(self) -> list[dict[str, Any]]:
        """List all jobs, oldest first: states, times, what was submitted, which webhooks were due."""
        jobs: list[dict[str, Any]] = self._ask("GET", "jobs")
        return jobs

    def job(self, job_id: str) -> dict[str, Any]:
        """Tell about one job what `jobs()` tells.

        Raises:
            LookupError: There is no such job.
        """
        job: dict[str, Any] = self._ask("GET", f"jobs/{job_id}")
        return job

    def requests(self, kind: str | None = None, job_id: str | None = None) -> list[dict[str, Any]]:
        """List the last 50,000 requests, oldest first, of one kind or about one job only if that is given.

        Returns:
            Of each: kind, method, path, headers (the key masked), time, job_id, request_id, status (`None`
            while it is not answered, and when the connection was dropped), fault (its kind), seconds.
        """
        requests: list[dict[str, Any]] = self._ask("GET", "requests", params={"kind": kind, "job_id": job_id})
        return requests

    def counts(self, job_id: str | None = None) -> dict[str, int]:
        """Count all requests by kind, those about one job only if that is given."""
        counts: dict[str, int] = self._ask("GET", "counts", params={"job_id": job_id})
        return counts

    def wait_for(self, kind: str, count: int = 1, *, job_id: str | None = None, timeout: float = 30) -> None:
        """Wait until so many requests of a kind have arrived.

        Args:
            kind: `submit`, `poll`, `cancel`, and so on.
            count: How many since the start, or since `reset()`.
            job_id: Only requests about this job.
            timeout: For how long, in seconds.

        Raises:
            TimeoutError: They have not.
        """
        params = {"kind": kind, "count": count, "job_id": job_id, "timeout": timeout}
        if not self._ask("GET", "wait", params=params, timeout=timeout + 30):
            counts = {name: number for name, number in self.counts(job_id).items() if number}
            about = f" about {job_id}" if job_id else ""
            raise TimeoutError(
                f"after {timeout} s there are not {count} {kind} requests{about}, but {counts}"
            )

    def reset(self) -> None:
        """Forget all jobs, faults and requests, and go back to the script of the emulator's start."""
        self._ask("POST", "reset")

    def close(self) -> None:
        """Close the connections to the emulator."""
        self._client.close()

    def __enter__(self) -> EmulatorControl:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        timeout: float = 30,
    ) -> Any:
        given = {name: value for name, value in (params or {}).items() if value is not None}
        response = self._client.request(method, path, json=body, params=given, timeout=timeout)
        if response.is_success:
            return response.json()
        message = response.json()["error"] if response.status_code in (400, 404, 409) else response.text
        raise LookupError(message) if response.status_code == 404 else ValueError(message)
