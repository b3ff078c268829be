"""A triggerer and a server whose responses are not HTTP, or never end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devtools.processes import descendants
from tests.e2e_airflow.conftest import KEY
from tests.fuzz.raw_server import ENDLESS, Chunks, RawServer, Respond

if TYPE_CHECKING:
    from devtools.airflow_server import LocalAirflow

EXTRA = {"request_timeout": 1, "retry_timeout": 100, "max_response_bytes": 1_000_000}
MEMORY = 100_000_000

# Responses over the size limit are permanent errors.
TOO_LARGE = ("bomb", "body", "body of a great length", "chunks")
TRANSIENT = [name for name in ENDLESS if name not in TOO_LARGE]


def http(code: str, **fields: str) -> Chunks:
    body = json.dumps(fields)
    head = f"HTTP/1.1 {code}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return [f"{head}{body}".encode()]


def job_server(polls: Sequence[Respond], then: Respond) -> RawServer:
    """Accept a submission, respond to the first polls with `polls`, and to all others with `then`."""
    left = list(polls)

    def response(request: bytes) -> Chunks:
        if request.startswith(b"POST "):
            return http("202 Accepted", executionId="job-1", status="started")
        return (left.pop(0) if left else then)(request)

    return RawServer(response)


def peak_memory(pid: int) -> int:
    """Return the sum of the peak memory of a process and of its children."""
    reported = "".join(Path(f"/proc/{each}/status").read_text() for each in (pid, *descendants(pid)))
    return sum(int(line.split()[1]) * 1024 for line in reported.splitlines() if line.startswith("VmHWM:"))


def run_against(airflow: LocalAirflow, server: RawServer, name: str) -> tuple[str, str | None]:
    """Run a task whose connection leads to a server, and return the run and how the task ended."""
    connection = f"nonsense_{name.replace(' ', '_')}"
    airflow.add_connection(
        connection, conn_type="noukai", password=KEY, host=server.base_url, extra=json.dumps(EXTRA)
    )
    run_id = airflow.trigger("nonsense", {"connection": connection})
    return run_id, airflow.wait_for("nonsense", run_id, "job")


def recovered(_: bytes) -> Chunks:
    """Say that the job has completed."""
    return http("200 OK", status="completed", result="recovered")


@pytest.fixture(scope="module")
def used_airflow(airflow: LocalAirflow) -> LocalAirflow:
    """The running Airflow, whose triggerer has loaded what any job needs."""
    with job_server([lambda _: http("200 OK", status="running")], recovered) as server:
        _, state = run_against(airflow, server, "nothing")
        assert state == "success"
    return airflow


@pytest.mark.parametrize(
    ("name", "outcome"), [("transient", "success"), *((name, "failed") for name in TOO_LARGE[:2])]
)
def test_responses_without_end(used_airflow: LocalAirflow, name: str, outcome: str) -> None:
    """The triggerer keeps running with little memory; the task succeeds once the server does, or fails."""
    airflow = used_airflow
    polls = [ENDLESS[each] for each in TRANSIENT] if name == "transient" else [ENDLESS[name]] * 1000
    before = airflow.triggerer.pid, peak_memory(airflow.triggerer.pid)
    with job_server(polls, recovered) as server:
        run_id, state = run_against(airflow, server, name)
        assert state == outcome
    assert airflow.triggerer.running
    assert airflow.triggerer.pid == before[0]
    assert peak_memory(airflow.triggerer.pid) - before[1] < MEMORY
    assert KEY not in airflow.logs("nonsense", run_id, "job")
    if outcome == "success":
        assert airflow.xcom("nonsense", run_id, "job") == "recovered"


def test_a_state_beyond_what_a_triggerer_reads(airflow: LocalAirflow) -> None:
    """If the state follows a large result, the trigger resumes the task, which fetches the result."""
    result = "x" * 3_000_000
    running = [lambda _: http("200 OK", status="running")] * 3
    with job_server(running, lambda _: http("200 OK", result=result, status="completed")) as server:
        extra = json.dumps({"max_poll_bytes": 1_000_000})
        airflow.add_connection("large", conn_type="noukai", password=KEY, host=server.base_url, extra=extra)
        run_id = airflow.trigger("nonsense", {"connection": "large"})
        assert airflow.wait_for("nonsense", run_id, "job") == "success"
    assert airflow.xcom("nonsense", run_id, "job") == result
    assert "does not begin with the state" in airflow.logs("nonsense", run_id, "job")
