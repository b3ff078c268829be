"""Many deferred tasks in a real triggerer, and the event of each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Self

from devtools.airflow_server import LocalAirflow
from devtools.processes import Component, ServerError, free_port, wait_until
from noukai_core import AsyncNoukai
from noukai_core.emulator import EmulatorControl
from tests.faults import scale
from tests.faults.balance import Report
from tests.faults.core.crowd import options, submitted
from tests.faults.jobs import FLOW, Plan, plans

ROOT = Path(__file__).parents[3]
DAG, TASK = "waiting", "job"

_FIRED = "Trigger fired event"
_FOREVER_SECONDS = 86_400.0


class Submitted(NamedTuple):
    """A job, and the arguments of its trigger."""

    plan: Plan
    id: str
    submitted_at: str


def submit(base_url: str, plans: Sequence[Plan]) -> list[Submitted]:
    """Submit all jobs at once, until the server has accepted each of them."""

    async def one(flow: Any, plan: Plan) -> Submitted:
        job = await submitted(flow, plan)
        return Submitted(plan, job.id, job.submitted_at.isoformat())

    async def run() -> list[Submitted]:
        async with AsyncNoukai(**options(base_url)) as client:
            flow = client.flow(FLOW)
            return await asyncio.gather(*(one(flow, plan) for plan in plans))

    return asyncio.run(run())


def watched(number: int, max_polls: int) -> list[Plan]:
    """Generate jobs, each of which ends with one of its first polls."""
    draw = Random(scale.SEED)
    return [plan._replace(after_polls=draw.randint(1, max_polls)) for plan in plans(number)]


def held(number: int) -> list[Plan]:
    """Generate jobs that run until `finish` ends them."""
    return [plan._replace(after_seconds=_FOREVER_SECONDS) for plan in plans(number)]


def finish(control: EmulatorControl, jobs: Sequence[Submitted]) -> None:
    """Let held jobs end as planned."""
    for job in jobs:
        control.finish(job.id, job.plan.outcome)


class CrowdedAirflow(LocalAirflow):
    """A running Airflow, into whose database thousands of deferred tasks can be written.

    Args:
        home: An empty folder.
        connections: The Airflow connections, by their ids.
        environment: Further variables for every process.
    """

    def __init__(
        self, home: Path, connections: Mapping[str, Mapping[str, Any]], environment: Mapping[str, str]
    ) -> None:
        known = {f"AIRFLOW_CONN_{name.upper()}": json.dumps(fields) for name, fields in connections.items()}
        super().__init__(
            Path(sys.executable).parent,
            home,
            [Path(__file__).parent / "dags"],
            environment={**known, **environment, "PYTHONPATH": str(ROOT)},
        )
        self._deferring: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Start every process, and the one that writes tasks into the database."""
        super().start()
        with (self.home / "deferring.log").open("wb") as log:
            self._deferring = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.airflow.deferring"],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self

    def stop(self) -> None:
        """Stop every process."""
        if self._deferring is not None:
            self._deferring.communicate()
            self._deferring = None
        super().stop()

    def defer(
        self,
        jobs: Sequence[Submitted],
        *,
        conn_id: str = "noukai_default",
        deadline: float | None = None,
        queue: str | None = None,
    ) -> Crowd:
        """Let a deferred task wait in the triggerer for each job.

        Args:
            jobs: The jobs.
            conn_id: The connection that the triggers use.
            deadline: When each trigger stops waiting, in seconds since the epoch.
            queue: The queue of the triggerer, if it has one.
        """
        rows = [{"id": job.id, "flow": FLOW, "submitted_at": job.submitted_at} for job in jobs]
        how = {"noukai_conn_id": conn_id, "deadline": deadline, "poll_interval": None}
        return Crowd(self, self._begin_run(jobs=rows, queue=queue, **how), list(jobs))

    def census(self) -> dict[str, Any]:
        """Count the resources of the process that runs the triggers."""
        crowd = Crowd(self, self._begin_run(jobs=None, queue=None), [])
        (counted,) = crowd.wait_for_events(1)
        return counted

    def turned_triggerer(self, clock: Mapping[str, str], queue: str) -> Component:
        """Start another triggerer, with its own queue and clock."""
        own = {
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__TRIGGERER__QUEUES_ENABLED": "True",
        }
        component = self._component(
            "triggerer", "--queues", queue, name=f"triggerer-{queue}", environment={**own, **clock}
        )
        component.start()
        return component

    def events(self, run_id: str) -> dict[int, dict[str, Any]]:
        """Return the event of each resumed task of a run, by map index."""
        address = f"file:{self.home / 'airflow.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=30)) as database:
            rows = database.execute(
                "SELECT map_index, next_method, next_kwargs FROM task_instance"
                " WHERE run_id = ? AND map_index >= 0 AND state != 'deferred'",
                (run_id,),
            ).fetchall()
        woken = {}
        for map_index, method, kwargs in rows:
            assert method == "execute_complete", f"task {map_index} is resumed with {method}: {kwargs}"
            woken[map_index] = json.loads(kwargs)["event"]
        return woken

    def _begin_run(self, **request: Any) -> str:
        """Write the tasks of one run into the database, and return its id."""
        run_id = self.trigger(DAG)
        process = self._deferring
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"run_id": run_id, **request}) + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "done\n":
            raise ServerError((self.home / "deferring.log").read_text()[-4000:])
        return run_id


@dataclass
class Crowd:
    """The deferred tasks of one run.

    Attributes:
        airflow: Where they wait.
        run_id: The run.
        jobs: The job of each, by map index.
    """

    airflow: CrowdedAirflow
    run_id: str
    jobs: list[Submitted]

    def events(self) -> dict[int, dict[str, Any]]:
        """Return the event of each resumed task, by map index."""
        return self.airflow.events(self.run_id)

    def wait_for_events(self, number: int | None = None, timeout: float = 120.0) -> list[dict[str, Any]]:
        """Wait until a number of tasks is resumed, by default all, and return their events."""
        wanted = len(self.jobs) if number is None else number
        wait_until(lambda: len(self.events()) >= wanted, f"{wanted} events", timeout=timeout)
        return [event for _, event in sorted(self.events().items())]

    def wait_until_watched(self, control: EmulatorControl) -> None:
        """Wait for another poll of each job."""
        before = len(control.requests("poll"))
        wanted = {job.id for job in self.jobs}
        wait_until(
            lambda: wanted <= {poll["job_id"] for poll in control.requests("poll")[before:]},
            "a poll of each job",
            pause=0.5,
        )

    def reports(self, timeout: float = 300.0) -> list[Report]:
        """Wait until the end of its job has resumed each task once, and return the reports."""
        events = self.wait_for_events(timeout=timeout)
        wait_until(lambda: self.fired() >= len(self.jobs), "the log of each event")
        assert self.fired() == len(self.jobs)
        reports = []
        for job, event in zip(self.jobs, events, strict=True):
            assert event["reason"] == "finished", (job, event)
            reports.append(Report(job.plan.message, event["job_id"], event["state"]))
        return reports

    def fired(self) -> int:
        """Count the events that the triggers have logged.

        Airflow writes the last lines of a trigger either to the log of the task or to its own.
        """
        logs = self.airflow.home.glob("triggerer*.log")
        lines = (line for log in logs for line in log.read_text(errors="replace").splitlines())
        elsewhere = sum(_FIRED in line and self.run_id in line for line in lines)
        return elsewhere + sum(self.log(place).count(_FIRED) for place in range(len(self.jobs)))

    def log(self, place: int) -> str:
        """Return the log of one task's trigger."""
        return self.airflow.logs(DAG, self.run_id, TASK, place)
