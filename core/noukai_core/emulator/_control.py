"""`EmulatorControl`: the control API from Python."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import EllipsisType, TracebackType
from typing import Any

import httpx


class EmulatorControl:
    """Controls an emulator, and reports what it has received.

    It uses HTTP, so the emulator can run in another process. It takes the same `base_url` as a client.

    Args:
        base_url: The emulator's address, such as `http://127.0.0.1:8090/api/v1`.
        verify: An `ssl.SSLContext` that trusts the emulator's certificate, if it serves HTTPS.
    """

    def __init__(self, base_url: str, *, verify: ssl.SSLContext | bool = True) -> None:
        address = httpx.URL(base_url).copy_with(raw_path=b"/_emulator/")
        self._client = httpx.Client(base_url=address, timeout=30, trust_env=False, verify=verify)

    def script(self, flow: str, **spec: Any) -> None:
        """Set how the jobs of a flow behave, from the next submission on.

        Args:
            flow: The flow's slug, its whole path `org/project/slug`, or `*` for every flow.
            spec: The specification, as `noukai_core.emulator` describes it. It replaces an earlier one.
        """
        self._call("POST", "script", {**spec, "flow": flow})

    def finish(self, job_id: str, outcome: str = "completed", **spec: Any) -> dict[str, Any]:
        """End a job now.

        Args:
            job_id: The job.
            outcome: `completed`, `failed` or `cancelled`.
            spec: `result`, `result_bytes` or `error`, which override the script.

        Returns:
            The job, as listed by `jobs()`.

        Raises:
            LookupError: There is no such job.
            ValueError: The job has already ended.
        """
        job: dict[str, Any] = self._call("POST", f"jobs/{job_id}/finish", {**spec, "outcome": outcome})
        return job

    def progress(self, job_id: str, progress: Mapping[str, Any]) -> None:
        """Set the progress that a job shows from now on."""
        self._call("POST", f"jobs/{job_id}/progress", dict(progress))

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
        """Switch a fault on. If several apply to a request, the one that was switched on first wins.

        Args:
            kind: The kind of fault, as `noukai_core.emulator` lists them.
            on: Which calls: `submit`, `poll`, `cancel`, `session`, `verify`, `trace`, `stream`, `runs`, or
                `any`. The default depends on the kind of fault.
            times: How many requests, `None` for no limit. By default one, or no limit with a probability.
            flow: Only requests about this flow, by slug or whole path.
            job_id: Only requests about this job.
            probability: How likely the fault affects each of these requests, from 0 to 1. By default 1.
            seed: A whole number that determines which requests are affected: the same ones in every run with
                the same submissions.
            options: The options of the kind of fault.

        Returns:
            The fault's number, as listed by `faults()`.
        """
        named = {"on": on, "flow": flow, "job_id": job_id, "probability": probability, "seed": seed}
        fault: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        if times is not ...:
            fault["times"] = times
        response: dict[str, int] = self._call("POST", "faults", {"kind": kind, **fault, **options})
        return response["id"]

    def faults(self) -> list[dict[str, Any]]:
        """List the active faults, each with the number of requests that it has affected."""
        faults: list[dict[str, Any]] = self._call("GET", "faults")
        return faults

    def clear_faults(self) -> None:
        """Switch all faults off."""
        self._call("DELETE", "faults")

    def jobs(self) -> list[dict[str, Any]]:
        """List all jobs, oldest first: states, times, submitted inputs, and the webhooks that were due."""
        jobs: list[dict[str, Any]] = self._call("GET", "jobs")
        return jobs

    def job(self, job_id: str) -> dict[str, Any]:
        """Return one job, as listed by `jobs()`.

        Raises:
            LookupError: There is no such job.
        """
        job: dict[str, Any] = self._call("GET", f"jobs/{job_id}")
        return job

    def requests(self, kind: str | None = None, job_id: str | None = None) -> list[dict[str, Any]]:
        """List the last 50,000 requests, oldest first, optionally only those of one kind or about one job.

        Returns:
            For each request: `kind`, `method`, `path`, `headers` (with the key masked), `time`, `job_id`,
            `request_id`, `status` (`None` before the response and if the connection was dropped), `fault`
            (its kind), `seconds`.
        """
        requests: list[dict[str, Any]] = self._call(
            "GET", "requests", params={"kind": kind, "job_id": job_id}
        )
        return requests

    def counts(self, job_id: str | None = None) -> dict[str, int]:
        """Count the requests by kind, optionally only those about one job."""
        counts: dict[str, int] = self._call("GET", "counts", params={"job_id": job_id})
        return counts

    def wait_for(self, kind: str, count: int = 1, *, job_id: str | None = None, timeout: float = 30) -> None:
        """Wait until a number of requests of a kind have arrived.

        Args:
            kind: `submit`, `poll`, `cancel`, and so on.
            count: How many, since the start or since `reset()`.
            job_id: Only requests about this job.
            timeout: How long to wait, in seconds.

        Raises:
            TimeoutError: They have not arrived in time.
        """
        params = {"kind": kind, "count": count, "job_id": job_id, "timeout": timeout}
        if not self._call("GET", "wait", params=params, timeout=timeout + 30):
            counts = {name: number for name, number in self.counts(job_id).items() if number}
            about = f" about {job_id}" if job_id else ""
            raise TimeoutError(
                f"expected {count} {kind} requests{about} within {timeout} s, but there were {counts}"
            )

    def reset(self) -> None:
        """Forget all jobs, faults and requests, and restore the initial script."""
        self._call("POST", "reset")

    def close(self) -> None:
        """Close the connections to the emulator."""
        self._client.close()

    def __enter__(self) -> EmulatorControl:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(
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
