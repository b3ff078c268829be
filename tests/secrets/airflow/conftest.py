"""One real Airflow, on which everything that can happen to a job happens with a marked key."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.fernet import Fernet

from devtools.airflow_server import LocalAirflow
from devtools.processes import Component, free_port, wait_until
from tests.secrets.marks import Mark, marked_key
from tests.secrets.places import Place, Processes, cells
from tests.secrets.strangers import Echo, Stranger

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator, EmulatorControl

NOTIFIES_TRIGGERS = tuple(map(int, version("apache-airflow-core").split(".")[:2])) >= (3, 3)

DAG = "everything"

BAD_CONNECTIONS = ("bad_key", "cut_key", "bad_extra", "bad_org")

# The final state of each task. This shows whether each scenario has happened.
OUTCOMES = {
    **dict.fromkeys(
        ("deferred_completed", "waiting_completed", "web_page_later", "decorated", "submitted"), "success"
    ),
    **dict.fromkeys(("sensed", "sensed_deferred", "echo_completed", "rate_limited"), "success"),
    **dict.fromkeys(("deferred_failed", "waiting_failed", "deferred_cancelled", "deadline"), "failed"),
    **dict.fromkeys(("rejected_key", "rejected_key_later", "rejected_model_key", "hooked"), "failed"),
    **dict.fromkeys(("redirected", "redirected_later", "killed_deferred", "killed_waiting"), "failed"),
    **dict.fromkeys((*BAD_CONNECTIONS, "unreachable"), "failed"),
    **dict.fromkeys(("echo_rejected", "echo_html", "echo_failed"), "failed"),
}
KILLED = ("killed_deferred", "killed_waiting")

_SETTINGS = {
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "1",
    "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Exclude the run, which the first test waits for, from its time limit."""
    for item in items:
        item.add_marker(pytest.mark.timeout(120, func_only=True))


class AirflowWithCommands(LocalAirflow):
    """A running Airflow with its command line."""

    def command(self, *arguments: str) -> Component:
        """Start a command, which is stopped with the other processes."""
        component = self._component(*arguments, name="-".join(arguments[:2]))
        component.start()
        return component


@dataclass
class Evidence:
    """What the run has left behind.

    Attributes:
        airflow: The running Airflow.
        key: The key.
        secret: The mark of the key.
        sign: The mark that must appear wherever messages do.
        fernet: Airflow's encryption.
        elsewhere: The target of the redirects.
        states: The state of each task.
        deferred: The cells of the database while tasks were deferred.
        processes: The arguments and environments of all processes.
        tests_of_connections: The responses to tests of connections.
        run_id: The run of the DAG.
    """

    airflow: AirflowWithCommands
    key: str
    secret: Mark
    sign: Mark
    fernet: Fernet
    elsewhere: Stranger
    states: dict[str, str | None] = field(default_factory=dict)
    deferred: list[Place] = field(default_factory=list)
    processes: set[Place] = field(default_factory=set)
    tests_of_connections: dict[str, Any] = field(default_factory=dict)
    run_id: str = ""

    @property
    def database(self) -> Path:
        """The metadata database."""
        return self.airflow.home / "airflow.db"


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[Stranger]:
    """A server with another origin."""
    with Stranger() as stranger:
        yield stranger


@pytest.fixture(scope="session")
def evidence(
    emulator_server: Emulator, elsewhere: Stranger, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Evidence]:
    """Let everything happen."""
    key, secret = marked_key()
    sign = Mark("seen1where2messages3should4go5")
    fernet_key = Fernet.generate_key()
    airflow = AirflowWithCommands(
        Path(sys.executable).parent,
        tmp_path_factory.mktemp("airflow"),
        [Path(__file__).parent / "dags"],
        environment={
            "SECRETS_SIGN": sign.text,
            "AIRFLOW__CORE__FERNET_KEY": fernet_key.decode(),
            **_SETTINGS,
        },
        parallelism=12,
    )
    found = Evidence(airflow, key, secret, sign, Fernet(fernet_key), elsewhere)
    with airflow, Echo() as echo, Processes(airflow.components) as processes:
        _connections(found, emulator_server.base_url, echo.url)
        _scripts(emulator_server.control, sign.text, elsewhere.url)
        found.run_id = airflow.trigger(DAG, {"sign": sign.text})
        trial = _try_out(found)
        _kill(found)
        for task in OUTCOMES:
            found.states[task] = airflow.wait_for(DAG, found.run_id, task)
        wait_until(lambda: not trial.running, "the DAG that is tried out")
        found.processes = processes.places
        yield found


def _connections(found: Evidence, noukai: str, echo: str) -> None:
    short = {"retry_timeout": 2, "recovery_timeout": 2, "not_found_grace": 2}
    nowhere = f"http://127.0.0.1:{free_port()}/api/v1"
    for name, password, host, extra in (
        ("noukai_default", found.key, noukai, {"run_url_template": "https://noukai.test/{flow}/{job_id}"}),
        ("bad_key", f"Bearer {found.key}", noukai, {}),
        ("cut_key", found.key.removeprefix("nk_"), noukai, {}),
        ("bad_extra", found.key, noukai, {"retry_timeout": "long"}),
        ("bad_org", found.key, noukai, {"org": "acme"}),
        ("unreachable", found.key, nowhere, {}),
        ("echo", found.key, echo, {}),
    ):
        fields = {"conn_type": "noukai", "password": password, "host": host}
        found.airflow.add_connection(name, **fields, extra=json.dumps(short | extra))
        tested = {**fields, "connection_id": "of_a_test", "extra": json.dumps(short | extra)}
        found.tests_of_connections[name] = found.airflow.post("/connections/test", tested)


def _scripts(control: EmulatorControl, sign: str, elsewhere: str) -> None:
    """Set the script of the job of each task."""
    never = {"outcome": "never"}
    failed = {"outcome": "failed", "error": f"the model said {sign}"}
    for task, script in {
        "deferred_completed": {"after_seconds": 8},
        "deferred_failed": failed | {"after_seconds": 8},
        "waiting_failed": failed,
        "deferred_cancelled": {"outcome": "cancelled", "after_seconds": 8},
        "web_page_later": {"after_seconds": 8},
        "rate_limited": {"after_seconds": 8},
        "submitted": {"after_seconds": 4},
        "hooked": failed,
        "tried_failed": failed,
        **dict.fromkeys((*KILLED, "deadline", "rejected_key_later", "redirected_later"), never),
    }.items():
        control.script(f"{task.replace('_', '-')}-{sign}", **script)
    redirect = {"kind": "redirect", "location": f"{elsewhere}/jobs"}
    rejected = {"kind": "status", "status": 502, "code": "BYOK_KEY_REJECTED", "message": f"no, {sign}"}
    for task, on, times, fault in (
        ("rejected_key", "submit", None, {"kind": "status", "status": 401}),
        ("rejected_key_later", "poll", None, {"kind": "expired_key"}),
        ("rejected_model_key", "submit", None, rejected),
        ("rate_limited", "submit", 1, {"kind": "status", "status": 429, "retry_after": 2}),
        ("web_page_later", "poll", 2, {"kind": "status", "status": 503, "body": "html"}),
        ("redirected", "any", None, redirect | {"status": 302}),
        ("redirected_later", "poll", None, redirect),
    ):
        control.fault(**fault, on=on, times=times, flow=f"{task.replace('_', '-')}-{sign}")


def _kill(found: Evidence) -> None:
    """Read the database while tasks wait for jobs that never end, and mark the tasks as failed."""
    airflow = found.airflow
    airflow.wait_for(DAG, found.run_id, "killed_deferred", "deferred")
    airflow.wait_for(DAG, found.run_id, "killed_waiting", "running")
    wait_until(lambda: airflow.xcom(DAG, found.run_id, "killed_waiting", "job_id"), "the job on the worker")
    found.deferred = list(cells(found.database, found.fernet))
    for task in KILLED:
        airflow.mark(DAG, found.run_id, task, "failed")


def _try_out(found: Evidence) -> Component:
    """Run a DAG on the command line, as its author does."""
    conf = json.dumps({"sign": found.sign.text})
    return found.airflow.command("dags", "test", "tried_out", "--conf", conf)
