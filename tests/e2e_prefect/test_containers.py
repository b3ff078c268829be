"""A worker that runs each flow run as a container does: with an empty file system that is gone afterwards."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devtools.processes import wait_until
from tests.e2e_prefect.conftest import WAIT_SECONDS

if TYPE_CHECKING:
    from devtools.prefect_server import LocalPrefect
    from tests.e2e_prefect.conftest import Run, Runs

FLOWS = Path(__file__).parent / "flows"
STYLES = {"called": 1, "two_steps": 1, "async_batch": 3}

# Python and the code are what an image holds.
CONTAINER = """
home=$(mktemp -d {folder}/XXXXXX) && cd "$home" || exit 1
exec env HOME="$home" TMPDIR="$home" PREFECT_HOME="$home" PREFECT_PROFILES_PATH="$home/profiles.toml" \
    PREFECT_RESULTS_LOCAL_STORAGE_PATH="$home/results" {python} -m prefect.engine
"""


@pytest.fixture
def containers(prefect: LocalPrefect, tmp_path: Path) -> Iterator[Path]:
    """A worker of the pool `containers`. Each attempt of a flow run has a folder here."""
    folder, script = tmp_path / "containers", tmp_path / "container.sh"
    folder.mkdir()
    script.write_text(CONTAINER.format(folder=folder, python=sys.executable))
    entrypoints = [f"{FLOWS / 'call_styles.py'}:{style}" for style in STYLES]
    prefect.deploy(*entrypoints, pool="lost-containers", command=f"/bin/sh {script}")
    worker = prefect.work("lost-containers")
    yield folder
    prefect.end(worker)


def rerun(prefect: LocalPrefect, run: Run, jobs: list[str]) -> None:
    """Run a crashed flow run again, until it polls its jobs."""
    polls = {job: run.control.counts(job)["poll"] for job in jobs}

    def attached() -> bool:
        # A worker of Prefect 3.6 reports a crash twice, and its second report undoes a retry between them.
        if prefect.state(run.id) == "Crashed":
            prefect.retry(run.id)
        return all(run.control.counts(job)["poll"] > before for job, before in polls.items())

    wait_until(attached, f"the rerun of {run.flow} to poll its jobs", WAIT_SECONDS)


def test_a_container_is_lost(runs: Runs, prefect: LocalPrefect, containers: Path) -> None:
    """A rerun in an empty container attaches to the jobs of the one that was lost: nothing is on its disk."""
    started = {
        style: runs.start(style, deployment="lost-containers", script={"outcome": "never"})
        for style in STYLES
    }
    jobs = {style: run.wait_for_jobs(STYLES[style], "running") for style, run in started.items()}
    for run in started.values():
        os.kill(prefect.flow_run_process(run.id), signal.SIGKILL)
    for style, run in started.items():
        run.wait_for("Crashed")
        rerun(prefect, run, jobs[style])
        for job in jobs[style]:
            run.control.finish(job)
    assert {run.wait_for() for run in started.values()} == {"Completed"}
    assert {style: run.submissions() for style, run in started.items()} == STYLES
    assert all(run.cancels(job) == 0 for style, run in started.items() for job in jobs[style])
    assert len(list(containers.iterdir())) >= 2 * len(STYLES)
