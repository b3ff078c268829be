"""One real Prefect for the whole suite, and one local Noukai.

Each flow run has its own Noukai flow, so runs never affect each other.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from devtools.prefect_server import LocalPrefect
from devtools.processes import wait_until

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator, EmulatorControl

ROOT = Path(__file__).parents[2]
KEY = "nk_test_e2eprefe_0123456789abcdef0123456789abcdef"
OTHER_KEY = "nk_test_e2eother_0123456789abcdef0123456789abcdef"
JOB_PAGE = "https://noukai.test/{org}/{project}/{flow}/runs/{job_id}"

WAIT_SECONDS = 300.0
"""How long a test waits for an event on a busy machine. Nothing promises to be this slow."""

_FLOW = re.compile(r"^@flow\b.*?^(?:async )?def (\w+)\(", re.MULTILINE | re.DOTALL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a test wait for several events in turn, and for those of the tests before it."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(3 * WAIT_SECONDS))


def entrypoints(folder: Path) -> list[str]:
    """Return every flow of a folder, as `path/to/file.py:function`."""
    return [
        f"{file}:{name}" for file in sorted(folder.glob("*.py")) for name in _FLOW.findall(file.read_text())
    ]


@pytest.fixture(scope="session")
def prefect(emulator_server: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrefect]:
    """A running Prefect that serves the example flows and the flows of this suite."""
    binaries, home = Path(sys.executable).parent, tmp_path_factory.mktemp("prefect")
    with LocalPrefect(binaries, home, environment={"PYTHONPATH": str(ROOT)}) as running:
        fields = {"api_key": KEY, "base_url": emulator_server.base_url, "run_url_template": JOB_PAGE}
        other = {**fields, "api_key": OTHER_KEY}
        running.save_blocks({"default": ("NoukaiCredentials", fields), "other": ("NoukaiCredentials", other)})
        running.serve(*entrypoints(ROOT / "example_flows"), *entrypoints(Path(__file__).parent / "flows"))
        running.serve(*entrypoints(ROOT / "noukai_prefect"), name="form")
        yield running


@dataclass
class Run:
    """One flow run, whose jobs are all of one Noukai flow.

    Attributes:
        id: The flow run.
        flow: The slug of the Noukai flow.
        parameters: The other parameters of the flow run.
    """

    prefect: LocalPrefect
    control: EmulatorControl
    id: str
    flow: str
    parameters: dict[str, Any]

    # On Prefect

    def wait_for(self, *states: str, timeout: float = WAIT_SECONDS) -> str:
        """Wait until the flow run is in one of the states; without arguments, in a final one."""
        return self.prefect.wait_for(self.id, *states, timeout=timeout)

    def task_states(self) -> list[str]:
        """Return the name of the state in which each task run has ended."""
        return [str(task["state_name"]) for task in self.prefect.ended_task_runs(self.id)]

    def artifact(self, prefix: str) -> dict[str, Any]:
        """Return the run's only artifact whose key is the prefix and the Noukai flow."""
        (found,) = self.prefect.artifacts(self.id, f"{prefix}-acme-tests-{self.flow}")
        return found

    def table(self) -> list[dict[str, Any]]:
        """Return the rows of the run's only table."""
        rows: list[dict[str, Any]] = json.loads(self.artifact("noukai-jobs")["data"])
        return rows

    def cancel(self) -> None:
        """Cancel the flow run as a user does."""
        self.prefect.cancel(self.id)

    def wait_until_cancelled(self) -> None:
        """Wait until the flow run is cancelled. Prefect may report a crash of its process before that."""
        self.wait_for("Cancelled")

    # On Noukai

    def jobs(self) -> list[dict[str, Any]]:
        """Return the jobs of this run, oldest first."""
        return [job for job in self.control.jobs() if job["slug"] == self.flow]

    def wait_for_jobs(self, count: int, state: str | None = None, timeout: float = WAIT_SECONDS) -> list[str]:
        """Wait until at least `count` jobs exist, optionally in a state, and return their ids."""

        def there() -> list[str]:
            found = [str(job["id"]) for job in self.jobs() if state is None or job["state"] == state]
            return found if len(found) >= count else []

        what = f"{count} jobs of {self.flow} to be {state or 'there'}"
        return wait_until(there, what, timeout, pause=0.5)  # the list has the jobs of all tests

    def attached_again(self, jobs: list[str]) -> None:
        """Wait until each job is polled once more."""
        before = {job: self.control.counts(job)["poll"] for job in jobs}
        for job in jobs:
            self.control.wait_for("poll", before[job] + 1, job_id=job, timeout=WAIT_SECONDS)

    def submissions(self) -> int:
        """Count the submissions that the server received for this flow."""
        return sum(f"/{self.flow}/" in request["path"] for request in self.control.requests("submit"))

    def cancels(self, job_id: str) -> int:
        """Count the requests to cancel a job."""
        return self.control.counts(job_id)["cancel"]


class Runs:
    """Starts flow runs, each with its own Noukai flow and script."""

    def __init__(self, prefect: LocalPrefect, emulator: Emulator) -> None:
        self.prefect = prefect
        self.control = emulator.control

    def start(
        self,
        flow: str,
        *,
        deployment: str = "local",
        script: dict[str, Any] | None = None,
        fault: dict[str, Any] | None = None,
        **parameters: Any,
    ) -> Run:
        """Set the script of the jobs, and run a deployment with their flow as its parameter."""
        name = flow.replace("_", "-")
        slug = f"{name[:30]}-{uuid4().hex[:8]}"
        if script:
            self.control.script(slug, **script)
        if fault:
            self.control.fault(**fault, flow=slug)
        flow_run = self.prefect.run(f"{name}/{deployment}", {"flow": f"acme/tests/{slug}", **parameters})
        return Run(self.prefect, self.control, flow_run, slug, parameters)


@pytest.fixture(scope="session")
def runs(prefect: LocalPrefect, emulator_server: Emulator) -> Runs:
    """Starts flow runs."""
    return Runs(prefect, emulator_server)
