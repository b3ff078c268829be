"""A triggerer before a server that sends what is no HTTP, or what never ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devtools.processes import descendants
from tests.e2e_airflow.conftest import KEY
from tests.fuzz.raw_server import ENDLESS, Answers, Pieces, RawServer

if TYPE_CHECKING:
    from devtools.airflow_server import LocalAirflow

EXTRA = {"request_timeout": 1, "retry_timeout": 100, "max_response_bytes": 1_000_000}
MEMORY = 100_000_000

# What is larger than allowed is given up for good.
TOO_LARGE = ("bomb", "body", "body of a great length", "chunks")
WAITED_OUT = [name for name in ENDLESS if name not in TOO_LARGE]


def said(code: str, **fields: str) -> Pieces:
    body = json.dumps(fields)
    head = f"HTTP/1.1 {code}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return [f"{head}{body}".encode()]


def job_server(looks: Sequence[Answers], then: Answers) -> RawServer:
    """Take a submission as a server does that is well; answer the first looks so, and all others `then`."""
    left = list(looks)

    def response(request: bytes) -> Pieces:
        if request.startswith(b"POST "):
            return said("202 Accepted", executionId="job-1", status="started")
        return (left.pop(0) if left else then)(request)

    return RawServer(response)


def peak_memory(pid: int) -> int:
    """Return the most bytes that a process and its children have held, each for itself."""
    reported = "".join(Path(f"/proc/{each}/status").read_text() for each in (pid, *descendants(pid)))
    return sum(int(line.split()[1]) * 1024 for line in reported.splitlines() if line.startswith("VmHWM:"))


@pytest.mark.parametrize(
    "name, outcome", [("waited out", "success"), *((name, "failed") for name in TOO_LARGE[:2])]
)
def test_responses_without_end(airflow: LocalAirflow, name: str, outcome: str) -> None:
    """The triggerer goes on, in little memory; the task ends well once the server does, or is given up."""
    looks = [ENDLESS[each] for each in WAITED_OUT] if name == "waited out" else [ENDLESS[name]] * 1000
    before = airflow.triggerer.pid, peak_memory(airflow.triggerer.pid)
    with job_server(looks, lambda _: said("200 OK", status="completed", result="well again")) as server:
        connection = f"nonsense_{name.replace(' ', '_')}"
        airflow.add_connection(
            connection, conn_type="noukai", password=KEY, host=server.base_url, extra=json.dumps(EXTRA)
        )
        run_id = airflow.trigger("nonsense", {"connection": connection})
        assert airflow.wait_for("nonsense", run_id, "job") == outcome
    assert airflow.triggerer.running
    assert airflow.triggerer.pid == before[0]
    assert peak_memory(airflow.triggerer.pid) - before[1] < MEMORY
    assert KEY not in airflow.logs("nonsense", run_id, "job")
    if outcome == "success":
        assert airflow.xcom("nonsense", run_id, "job") == "well again"
