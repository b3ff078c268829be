"""`airflow dags test` and `dag.test()`, which run triggers in their own process, with less information."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devtools.processes import LONGEST_WAIT, wait_until
from tests.documents import examples
from tests.e2e_airflow.conftest import KEY

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

DAGS = Path(__file__).parents[1] / "e2e_airflow" / "dags"


@pytest.fixture(scope="module")
def environment(emulator_server: Emulator, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a separate Airflow, with a database and without processes."""
    connection = {"conn_type": "noukai", "password": KEY, "host": emulator_server.base_url}
    environment = os.environ | {
        "AIRFLOW_HOME": str(tmp_path_factory.mktemp("dag-test")),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AIRFLOW_CONN_NOUKAI_DEFAULT": json.dumps(connection),
    }
    airflow(environment, "db", "migrate")
    return environment


def airflow(environment: dict[str, str], *arguments: str) -> str:
    """Run an `airflow` command, and return its output."""
    command = [str(Path(sys.executable).parent / "airflow"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST_WAIT)
    return done.stdout + done.stderr


@pytest.mark.parametrize(("outcome", "end"), [("completed", "success"), ("failed", "failed")])
def test_a_deferrable_task(
    outcome: str, end: str, environment: dict[str, str], emulator_server: Emulator
) -> None:
    """A deferrable task ends in the same way as elsewhere, after one submission."""
    flow = f"dag-test-{outcome}"
    emulator_server.control.script(flow, outcome=outcome, after_seconds=1)
    output = airflow(
        environment,
        *("dags", "test", "deferred", "-f", str(DAGS / "scenarios.py"), "-c", json.dumps({"flow": flow})),
    )
    assert "waiting in the triggerer" in output, output
    assert f"state={end}" in output, output
    (job,) = [job for job in emulator_server.control.jobs() if job["flow"].endswith(flow)]
    assert (job["state"], emulator_server.control.counts(job["id"]).get("cancel", 0)) == (outcome, 0)


@pytest.mark.parametrize("dag", ["waiting", "deferred"])
def test_ctrl_c(dag: str, environment: dict[str, str], emulator_server: Emulator) -> None:
    """A person who interrupts the command ends the task, so its job is cancelled, wherever it waits."""
    flow, control = f"ctrl-c-{dag}", emulator_server.control
    control.script(flow, outcome="never")
    arguments = ["test", dag, "-f", str(DAGS / "scenarios.py"), "-c", json.dumps({"flow": flow})]
    command = [str(Path(sys.executable).parent / "airflow"), "dags", *arguments]

    def polled() -> list[str]:
        jobs = [job["id"] for job in control.jobs() if job["flow"].endswith(flow)]
        return [job_id for job_id in jobs if control.counts(job_id)["poll"]]

    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, **streams) as process:
        try:
            (job_id,) = wait_until(polled, "a poll")
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=LONGEST_WAIT)
        finally:
            process.kill()
    assert control.job(job_id)["state"] == "cancelled", output.decode()
    assert "cancelled (a user ended its task)" in output.decode()


EVERY_DAG = """
import runpy, sys
for file in sys.argv[1:]:
    for dag in {id(one): one for one in runpy.run_path(file).values() if hasattr(one, "task_dict")}.values():
        print("ran", file, dag.test().state)
"""


def test_documented_dags(environment: dict[str, str], emulator_server: Emulator, tmp_path: Path) -> None:
    """Every DAG of the documentation runs to its end as it stands."""
    emulator_server.control.script("*", after_polls=1)
    documented = examples("noukai_airflow")
    files = [tmp_path / f"documented_{number}.py" for number in range(len(documented))]
    for file, example in zip(files, documented, strict=True):
        file.write_text(f"{example.code}\ndocumented = {dag_name(example.code)}()\n")
    done = subprocess.run(
        [sys.executable, "-c", EVERY_DAG, *map(str, files)],
        env={**environment, "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    for file, example in zip(files, documented, strict=True):
        assert f"ran {file} success" in done.stdout, f"{example.where}\n{done.stdout}{done.stderr}"


def dag_name(code: str) -> str:
    """Return the name of the function that defines the DAG."""
    (name,) = re.findall(r"^@dag.*\ndef (\w+)", code, re.MULTILINE)
    return str(name)
