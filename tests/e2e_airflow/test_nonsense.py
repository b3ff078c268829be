"""A triggerer and a server whose responses are not HTTP, or never end.

All runs are started at once; each test checks its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
LARGE = "x" * 3_000_000

# Responses over the size limit are permanent errors.
TOO_LARGE = ("bomb", "body", "body of a great length", "chunks")
FAILING = TOO_LARGE[:2]
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


class Task:
    """A task whose connection leads to a server."""

    def __init__(self, airflow: LocalAirflow, server: RawServer, name: str, extra: dict[str, int]) -> None:
        self.airflow = airflow
        connection = f"nonsense_{name.replace(' ', '_')}"
        airflow.add_connection(
            connection, conn_type="noukai", password=KEY, host=server.base_url, extra=json.dumps(extra)
        )
        self.run_id = airflow.trigger("nonsense", {"connection": connection})

    def end(self) -> str | None:
        """Wait for the end of the task, and return its state."""
        return self.airflow.wait_for("nonsense", self.run_id, "job")

    @property
    def output(self) -> object:
        """What the task returned."""
        return self.airflow.xcom("nonsense", self.run_id, "job")

    @property
    def log(self) -> str:
        """The task's log."""
        return self.airflow.logs("nonsense", self.run_id, "job")


def running(_: bytes) -> Chunks:
    """Say that the job is running."""
    return http("200 OK", status="running")


def recovered(_: bytes) -> Chunks:
    """Say that the job has completed."""
    return http("200 OK", status="completed", result="recovered")


def odd(_: bytes) -> Chunks:
    """Say that the job has completed, with a result that no XCom can hold."""
    body = (
        b'{"status":"completed","result":{"nan":NaN,"infinite":[-1e999],"nul\\u0000":"a\\u0000b",'
        b'"half":"\\ud83d","large":36893488147419103232,"usual":[1.5,"x",null]}}'
    )
    return [f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body]


def large(_: bytes) -> Chunks:
    """Say that the job has completed, after its result."""
    return http("200 OK", result=LARGE, status="completed")


@dataclass(frozen=True)
class Triggerer:
    """What the triggerer was before any nonsense, and the tasks that wait in it.

    Attributes:
        pid: Its process.
        memory: Its peak memory, in bytes, once it had loaded what any job needs.
        tasks: The tasks, by what their servers send.
    """

    pid: int
    memory: int
    tasks: dict[str, Task]


@pytest.fixture(scope="module")
def triggerer(airflow: LocalAirflow) -> Iterator[Triggerer]:
    """The triggerer, with all tasks at once."""
    endless = {
        "transient": [ENDLESS[each] for each in TRANSIENT],
        **{name: [ENDLESS[name]] * 1000 for name in FAILING},
    }
    with ExitStack() as servers:

        def started(
            name: str, polls: Sequence[Respond], then: Respond = recovered, extra: dict[str, int] = EXTRA
        ) -> Task:
            return Task(airflow, servers.enter_context(job_server(polls, then)), name, extra)

        assert started("nothing", [running]).end() == "success"
        pid = airflow.triggerer.pid
        memory = peak_memory(pid)
        tasks = {name: started(name, polls) for name, polls in endless.items()}
        tasks["odd"] = started("odd", [running], odd)
        tasks["large"] = started("large", [running] * 3, large, {"max_poll_bytes": 1_000_000})
        yield Triggerer(pid, memory, tasks)


@pytest.mark.parametrize(
    ("name", "outcome"), [("transient", "success"), *((name, "failed") for name in FAILING)]
)
def test_responses_without_end(airflow: LocalAirflow, triggerer: Triggerer, name: str, outcome: str) -> None:
    """The triggerer keeps running with little memory; the task succeeds once the server does, or fails."""
    task = triggerer.tasks[name]
    assert task.end() == outcome
    assert airflow.triggerer.running
    assert airflow.triggerer.pid == triggerer.pid
    assert peak_memory(airflow.triggerer.pid) - triggerer.memory < MEMORY
    assert KEY not in task.log
    if outcome == "success":
        assert task.output == "recovered"


def test_a_state_beyond_what_a_triggerer_reads(triggerer: Triggerer) -> None:
    """If the state follows a large result, the trigger resumes the task, which fetches the result."""
    task = triggerer.tasks["large"]
    assert task.end() == "success"
    assert task.output == LARGE
    assert "does not begin with the state" in task.log


def test_a_result_that_no_xcom_can_hold(triggerer: Triggerer) -> None:
    """What Airflow cannot store of a result is replaced, and the task that has paid for it succeeds."""
    task = triggerer.tasks["odd"]
    assert task.end() == "success"
    assert task.output == {
        "nan": None,
        "infinite": [None],
        "nul\ufffd": "a\ufffdb",
        "half": "\ufffd",
        "large": 2.0**65,
        "usual": [1.5, "x", None],
    }
    assert "output changed (" in task.log
