"""One real Airflow for the whole suite, with a local Noukai.

Each DAG run has its own flow, so runs do not affect each other.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from devtools.airflow_server import LocalAirflow
from devtools.processes import LONGEST_WAIT, ServerError, wait_until
from tests.e2e_airflow.side_by_side import pytest_configure, pytest_pyfunc_call

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator, EmulatorControl

__all__ = ["pytest_configure", "pytest_pyfunc_call"]

AIRFLOW = tuple(int(part) for part in version("apache-airflow-core").split(".")[:2])

# Before 3.3, Airflow does not notify triggers of a kill.
NOTIFIES_TRIGGERS = AIRFLOW >= (3, 3)

ROOT = Path(__file__).parents[2]
KEY = "nk_test_e2eairfl_0123456789abcdef0123456789abcdef"
LINEAGE = "openlineage.json"
OPENLINEAGE_POLICY = [
    {"scope": {}, "controls": {"emit": False}},
    {"scope": {"dag_id": "with_openlineage"}, "controls": {"emit": True}},
]
JOB_PAGE = "https://noukai.test/{org}/{project}/{flow}/runs/{job_id}"

# Airflow does these things every few seconds by default. Here it does them every second, to save time.
PROMPT = {
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "1",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
    # A busy machine exceeds the limits that Airflow sets for the parsing of a file and for its own requests,
    # which fails tasks.
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": str(LONGEST_WAIT),
    "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": f"{LONGEST_WAIT:.0f}",
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
    # By default, five within some 15 s, for as long as which a busy scheduler may hold SQLite's lock.
    "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "12",
    # A scheduler that had to wait for SQLite's lock takes itself for dead, and runs its tasks once more.
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": f"{LONGEST_WAIT:.0f}",
    # The DAGs do not change. Airflow parses all of them again every 30 s by default.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
    # A minute by default. If it is over before the scheduler has noticed the end of the worker's process, the
    # scheduler takes that end for the next one's, and fails the task.
    "AIRFLOW__WORKERS__MISSING_DAG_RETRY_DELAY": "20",
    # Tests share DAGs, and leave runs behind that still wait. By default, the 17th of a DAG does not start.
    "AIRFLOW__CORE__MAX_ACTIVE_RUNS_PER_DAG": "1000",
    "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "1000",
}


_TRIGGER_RUNS = ") starting"

# What a scheduler says that fails a task because it was too busy to notice the end of one segment of the task
# before the next one was due.
_MISTAKEN = "but the task instance's state attribute is"

# Many tests wait at the same time, and what they ask for takes the time of the processes that they test.
_PAUSE = 0.5


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Exclude the start of Airflow, which the first test waits for, from its time limit."""
    for item in items:
        item.add_marker(pytest.mark.timeout(600, func_only=True))


@pytest.fixture(scope="session")
def changing_dags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of DAGs whose files a test may write and remove."""
    return tmp_path_factory.mktemp("dags")


@pytest.fixture(scope="session")
def airflow(
    emulator_server: Emulator,
    changing_dags: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[LocalAirflow]:
    """A running Airflow with the example DAGs and the DAGs of this suite."""
    extra = {"run_url_template": JOB_PAGE, "retry_timeout": 4, "recovery_timeout": 4, "not_found_grace": 4}
    connection = {"conn_type": "noukai", "password": KEY, "host": emulator_server.base_url, "extra": extra}
    home = tmp_path_factory.mktemp("airflow")
    lineage = {"type": "file", "log_file_path": str(home / LINEAGE), "append": True}
    environment = {
        "AIRFLOW_CONN_NOUKAI_DEFAULT": json.dumps(connection),
        "AIRFLOW_CONN_NOUKAI_PATIENT": json.dumps(connection | {"extra": {}}),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(lineage),
        "AIRFLOW__OPENLINEAGE__EMISSION_POLICY": json.dumps(OPENLINEAGE_POLICY),
        **PROMPT,
    }
    with LocalAirflow(
        Path(sys.executable).parent,
        home,
        [ROOT / "example_dags", Path(__file__).parent / "dags", changing_dags],
        environment=environment,
        parallelism=16,
    ) as running:
        yield running
        # Some tasks still wait for their jobs. They are not needed any more.
        for component in running.components.values():
            component.retire()
            component.kill()
        if request.session.testsfailed:
            _keep_logs(home)


def _keep_logs(home: Path) -> None:
    """Keep what the processes wrote. Pytest removes the folders of all but its last few runs."""
    kept = ROOT / ".build" / "logs" / f"{Path(sys.prefix).name}-airflow-processes"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for log in home.glob("*.log"):
        shutil.copy(log, kept)


@dataclass
class Run:
    """One run of a DAG. All of its jobs belong to one flow.

    Attributes:
        flow: The slug of the flow.
        task_id: The default task.
    """

    airflow: LocalAirflow
    control: EmulatorControl
    dag_id: str
    flow: str
    task_id: str = "job"
    run_id: str = field(default="")

    def start(self, **conf: Any) -> Run:
        """Trigger the DAG, with more of a configuration than the flow if it needs it."""
        self.run_id = self.airflow.trigger(self.dag_id, {"flow": self.flow, **conf})
        return self

    # Airflow's side

    def wait_for(
        self,
        *states: str | None,
        task_id: str | None = None,
        map_index: int = -1,
        timeout: float = LONGEST_WAIT,
    ) -> Any:
        """Wait until the task is in one of the states; without any, in a final one."""
        return self.airflow.wait_for(
            self.dag_id, self.run_id, task_id or self.task_id, *states, map_index=map_index, timeout=timeout
        )

    def wait_for_own_end(self, task_id: str | None = None) -> Any:
        """Wait for a final state, and clear the task, as a user does, if a busy scheduler has failed it."""
        task, mistakes = task_id or self.task_id, 0
        while (state := self.wait_for(task_id=task)) == "failed":
            about = f"{self.dag_id}.{task} {self.run_id} "
            lines = self.airflow.scheduler_warnings(self.run_id)
            seen = sum(about in line and _MISTAKEN in line for line in lines)
            if seen <= mistakes:
                break
            mistakes = seen
            self.airflow.clear(self.dag_id, self.run_id, task)
        return state

    def wait_until_watched(self, map_index: int = -1) -> None:
        """Wait until the task is deferred and its trigger runs.

        Before that, Airflow does not notify the trigger of a kill.
        """
        self.wait_for("deferred", map_index=map_index)
        wait_until(
            lambda: _TRIGGER_RUNS in self.logs(map_index=map_index), "the trigger to start", pause=_PAUSE
        )

    def wait_until_settled(self) -> None:
        """Wait until the task's latest try is deferred, with its own job.

        If a second clear comes when the scheduler has queued the try of the first, which is then no longer
        there, Airflow fails the task. A user clears it once more.
        """

        def settled() -> bool:
            if self.state() == "failed":
                self.clear()
            jobs = self.jobs()
            return len(jobs) > 1 and self.state() == "deferred" and self.xcom("job_id") == jobs[-1]["id"]

        wait_until(settled, "the latest try to be deferred", pause=_PAUSE)

    def state(self, task_id: str | None = None, map_index: int = -1) -> str | None:
        """Return the state of the task."""
        return self.airflow.task_state(self.dag_id, self.run_id, task_id or self.task_id, map_index)

    def tries(self) -> int:
        """Return the number of the task's latest try."""
        return int(self.airflow.task(self.dag_id, self.run_id, self.task_id)["try_number"])

    def xcom(self, key: str = "return_value", task_id: str | None = None, map_index: int = -1) -> Any:
        """Return an XCom of the task."""
        return self.airflow.xcom(self.dag_id, self.run_id, task_id or self.task_id, key, map_index)

    def mark(self, state: str, map_index: int = -1) -> None:
        """Mark the task as a user does."""
        self.airflow.mark(self.dag_id, self.run_id, self.task_id, state, map_index)

    def clear(self) -> None:
        """Clear the task as a user does."""
        self.airflow.clear(self.dag_id, self.run_id, self.task_id)

    def logs(self, task_id: str | None = None, map_index: int = -1) -> str:
        """Return the task's log."""
        return self.airflow.logs(self.dag_id, self.run_id, task_id or self.task_id, map_index)

    def said(self, part: str) -> int:
        """Count the messages of the task's log that contain a text."""
        lines = self.logs().splitlines()
        return sum(part in str(json.loads(line).get("event")) for line in lines if line.startswith("{"))

    def wait_until_said(self, phrase: str) -> None:
        """Wait until a line of the task's log has the phrase."""
        try:
            wait_until(lambda: self.said(phrase), f"{phrase!r} in the log", pause=_PAUSE)
        except ServerError as error:
            raise ServerError(f"{error}. The log:\n{self.logs()[-8000:]}") from None

    def errors(self) -> list[dict[str, Any]]:
        """Return the exceptions in the task's log, as the web page shows them."""
        lines = [json.loads(line) for line in self.logs().splitlines() if line.startswith("{")]
        return [error for line in lines for error in line.get("error_detail") or ()]

    def wait_until_attached(self) -> None:
        """Wait until a retry has attached to the job of the previous try."""
        # The first is logged if the job is recorded, the second if the server is asked for it.
        phrases = (": attached", "found by its submission")
        wait_until(lambda: any(map(self.said, phrases)), "the retry to attach", pause=_PAUSE)

    # Noukai's side

    def jobs(self) -> list[dict[str, Any]]:
        """Return the jobs of this run's flow, oldest first."""
        return [job for job in self.control.jobs() if str(job["flow"]).rsplit("/", 1)[-1] == self.flow]

    def alive_jobs(self) -> list[str]:
        """Return the ids of the jobs that have not ended."""
        return [job["id"] for job in self.jobs() if job["state"] in ("pending", "running")]

    def wait_for_jobs(self, count: int, timeout: float = LONGEST_WAIT) -> list[dict[str, Any]]:
        """Wait until the flow has a number of jobs, and return them."""
        wait_until(
            lambda: len(self.jobs()) >= count, f"{count} jobs of {self.flow}", timeout=timeout, pause=_PAUSE
        )
        return self.jobs()

    def job(self) -> dict[str, Any]:
        """Return the only job."""
        (job,) = self.jobs()
        return job

    def submissions(self) -> int:
        """Count the requests to submit that the server saw for this flow."""
        return sum(f"/{self.flow}/" in request["path"] for request in self.control.requests(kind="submit"))

    def cancels(self, job_id: str) -> int:
        """Count the requests to cancel a job."""
        return self.control.counts(job_id).get("cancel", 0)

    def wait_for_polls(self, job_id: str, more: int = 2) -> None:
        """Wait for further polls of the job."""
        seen = self.control.counts(job_id).get("poll", 0)
        wait_until(lambda: self.control.counts(job_id).get("poll", 0) >= seen + more, "polls of the job")

    def finish_well(self, job_id: str) -> None:
        """Let the job complete, and check that the result arrives."""
        self.control.finish(job_id, result={"whole": True})
        self.check_end(job_id)

    def check_end(self, job_id: str) -> None:
        """Check that the result arrives, after one submission and no cancel."""
        assert self.wait_for("success") == "success"
        assert self.xcom() == {"whole": True}
        assert (self.submissions(), self.cancels(job_id)) == (1, 0)

    def end_process(self, number: signal.Signals) -> None:
        """Send a signal to the process that runs the task's own code."""
        os.kill(self.airflow.task_process(self.dag_id, self.run_id, self.task_id), number)

    def wait_until_waiting(self) -> str:
        """Wait until the task waits for its only job on a worker, and return the job's id."""
        (job,) = self.wait_for_jobs(1)
        wait_until(lambda: self.xcom("job_id") == job["id"], "the job's id", pause=_PAUSE)
        return str(job["id"])

    def check_abandoned(self, job_id: str) -> None:
        """Check that the job of a deferred task that a user has ended is cancelled.

        Its trigger cancels it, or the API server: before 3.3, and if a busy triggerer has not done so within
        15 s. The trigger then cancels it once more.
        """
        self.wait_for_end(job_id, "cancelled")
        assert self.cancels(job_id) in (1, 2)

    def wait_for_end(self, job_id: str, state: str, timeout: float = LONGEST_WAIT) -> None:
        """Wait until a job has ended as the server sees it."""

        def ended() -> bool:
            return any(job["id"] == job_id and job["state"] == state for job in self.jobs())

        wait_until(ended, f"job {job_id} to be {state}", timeout=timeout, pause=_PAUSE)


class Runs:
    """Starts runs, each with its own flow and script."""

    def __init__(self, airflow: LocalAirflow, emulator: Emulator) -> None:
        self.airflow = airflow
        self.control = emulator.control

    def start(self, dag_id: str, *, task_id: str = "job", **script: Any) -> Run:
        """Set the script of the jobs, and run the DAG."""
        run = self.prepare(dag_id, task_id=task_id, **script)
        return run.start()

    def prepare(self, dag_id: str, *, task_id: str = "job", **script: Any) -> Run:
        """The same, without the start."""
        flow = f"{dag_id.replace('_', '-')[:30]}-{uuid4().hex[:8]}"
        if script:
            self.control.script(flow, **script)
        return Run(self.airflow, self.control, dag_id, flow, task_id)


@pytest.fixture(scope="session")
def runs(airflow: LocalAirflow, emulator_server: Emulator) -> Runs:
    """Starts DAG runs."""
    return Runs(airflow, emulator_server)
