"""One real Prefect for the whole suite, next to one local Noukai.

Each flow run has a Noukai flow of its own, so runs never meet.
"""

from __future__ import annotations

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

_FLOW = re.compile(r"^@flow\b.*?^(?:async )?def (\w+)\(", re.MULTILINE | re.DOTALL)


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
    """

    prefect: LocalPrefect
    control: EmulatorControl
    id: str
    flow: str

    # Prefect's side

    def wait_for(self, *states: str, timeout: float = 60.0) -> str:
        """Wait until the flow run is in one of the states; without any, in a final one."""
        return self.prefect.wait_for(self.id, *states, timeout=timeout)

    def task_states(self) -> list[str]:
        """Return the name of the state in which each task run has ended."""
        return [str(task["state_name"]) for task in self.prefect.ended_task_runs(self.id)]

    def cancel(self) -> None:
        """Cancel the flow run as a user does."""
        self.prefect.cancel(self.id)

    # Noukai's side

    def jobs(self) -> list[dict[str, Any]]:
        """Return the jobs of this run, oldest first."""
        return [job for job in self.control.jobs() if job["slug"] == self.flow]

    def wait_for_jobs(self, count: int, state: str | None = None, timeout: float = 60.0) -> list[str]:
        """Wait until so many jobs are there, in a state if one is given, and return their ids."""

        def there() -> list[str]:
            found = [str(job["id"]) for job in self.jobs() if state is None or job["state"] == state]
            return found if len(found) >= count else []

        return wait_until(there, f"{count} jobs of {self.flow} to be {state or 'there'}", timeout)

    def attached_again(self, jobs: list[str]) -> None:
        """Wait until somebody looks at each job once more."""
        seen = {job: self.control.counts(job)["poll"] for job in jobs}
        for job in jobs:
            self.control.wait_for("poll", seen[job] + 1, job_id=job, timeout=60)

    def submissions(self) -> int:
        """Count the requests to submit that the server saw for this flow."""
        return sum(f"/{self.flow}/" in request["path"] for request in self.control.requests("submit"))

    def cancels(self, job_id: str) -> int:
        """Count the requests to cancel a job."""
        return self.control.counts(job_id)["cancel"]


class Runs:
    """Starts flow runs, each with a Noukai flow and a script of its own."""

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
        """Tell the local Noukai how the jobs go, and run a deployment with their flow as its parameter."""
        name = flow.replace("_", "-")
        slug = f"{name[:30]}-{uuid4().hex[:8]}"
        if script:
            self.control.script(slug, **script)
        if fault:
            self.control.fault(**fault, flow=slug)
        given = {"flow": f"acme/tests/{slug}", **parameters}
        return Run(self.prefect, self.control, self.prefect.run(f"{name}/{deployment}", given), slug)


@pytest.fixture(scope="session")
def runs(prefect: LocalPrefect, emulator_server: Emulator) -> Runs:
    """Starts flow runs."""
    return Runs(prefect, emulator_server)
