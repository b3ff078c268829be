"""A thousand deferred jobs in a real triggerer, looked at every 10 s over TLS, beside its peers.

    .venv/airflow-peers/bin/python benchmarks/triggerer.py [sleep bare noukai databricks dbt]

(`make .venv/airflow-peers/ready` builds that environment.) For each line of the table a triggerer of its own
starts, is idle, and then finds a thousand deferred tasks in the database at once:

- sleep: triggers that only sleep;
- bare: triggers that look over the one aiohttp session of all, the least that looking costs;
- noukai: this project's trigger, its interval fixed at 10 s and its budget raised to 150 looks a second;
- databricks, dbt: the triggers of those providers, their interval set to 10 s.

All look at one local server. CPU is that of the last `STEADY` seconds, as seconds a minute; memory is what a
thousand triggers add to the idle processes. `blocked` counts Airflow's warnings of a blocked loop since then;
`pause` is the longest time that a trigger beside the thousand waited for its turn, while they started and
after that. Last comes what follows for larger numbers (`scale.py`). Everything ends by
itself after about six minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scale import UnitCosts, on_paper

from demo.processes import Component, ServerError, free_port, wait_until
from noukai_core import Noukai
from noukai_core.emulator import EmulatorControl

CHECKOUT = Path(__file__).resolve().parents[1]
KEY = "nk_test_benchmrk_0123456789abcdef0123456789abcdef"
FLOW = "acme/benchmark/jobs"
TRIGGERS, INTERVAL = 1000, 10
IDLE, STARTING, MORE, STEADY = 5, 25, 95, 30
FOREVER = 7200.0
Trigger = tuple[str, dict[str, Any]]
KINDS = ("sleep", "bare", "noukai", "databricks", "dbt")


@dataclass(frozen=True)
class Spent:
    """What a thousand triggers of one kind took: processor seconds a minute, MB, seconds, and warnings."""

    runner: float
    supervisor: float
    memory: float
    starting_pause: float
    steady_pause: float
    blocked: int
    looks: float


class Services:
    """The server of all kinds of triggers."""

    def __init__(self, address: str, certificates: str) -> None:
        self.address, self.certificates = address, certificates
        self.base_url = f"https://{address}/api/v1"
        context = ssl.create_default_context(cafile=certificates)
        self.control = EmulatorControl(self.base_url, verify=context)
        self._client = httpx.Client(base_url=f"https://{address}", verify=context, trust_env=False)
        os.environ["SSL_CERT_FILE"] = certificates
        self.peers_run: int = self._client.post("/benchmark/runs", json={"seconds": FOREVER}).json()["number"]

    def submit(self) -> list[str]:
        """Submit the jobs, and return their ids."""
        self.control.script("*", after_seconds=FOREVER)
        with Noukai(KEY, base_url=self.base_url) as client:
            return [client.flow(FLOW).job("a job").id for _ in range(TRIGGERS)]

    def looks(self) -> int:
        """Count the looks of all kinds so far."""
        peers: int = self._client.get(f"/benchmark/runs/{self.peers_run}").json()["requests"]
        return self.control.counts().get("poll", 0) + peers


def queues(kinds: list[str], services: Services, jobs: list[str], home: Path) -> dict[str, list[Trigger]]:
    """Return the triggers that wait in each queue: a probe and the thousand for every kind."""
    waiting: dict[str, list[Trigger]] = {}
    for kind in kinds:
        pauses = {"seconds": 0.02, "url": str(pauses_of(home, kind))}
        waiting[probe_of(kind)] = [("triggerer_peers.PauseProbe", pauses)]
        waiting[kind] = [_trigger(kind, services, job) for job in jobs]
    return waiting


def probe_of(kind: str) -> str:
    """Return the queue of the probe beside a kind."""
    return f"probe-{kind}"


def pauses_of(home: Path, kind: str) -> Path:
    """Return the file in which the probe beside a kind writes."""
    return home / f"{kind}.pauses"


def _trigger(kind: str, services: Services, job: str) -> Trigger:
    url = f"{services.base_url}/seq/{FLOW}/jobs/{job}"
    of_kind: dict[str, Trigger] = {
        "sleep": ("triggerer_peers.SleepTrigger", {"seconds": INTERVAL, "url": url}),
        "bare": ("triggerer_peers.BareTrigger", {"seconds": INTERVAL, "url": url}),
        "noukai": (
            "noukai_airflow.triggers.noukai.NoukaiJobTrigger",
            {"job_id": job, "flow": FLOW, "poll_interval": INTERVAL},
        ),
        "databricks": (
            "airflow.providers.databricks.triggers.databricks.DatabricksExecutionTrigger",
            {
                "run_id": services.peers_run,
                "databricks_conn_id": "databricks_default",
                "polling_period_seconds": INTERVAL,
            },
        ),
        "dbt": (
            "airflow.providers.dbt.cloud.triggers.dbt.DbtCloudRunJobTrigger",
            {
                "conn_id": "dbt_cloud_default",
                "run_id": services.peers_run,
                "end_time": time.time() + FOREVER,
                "poll_interval": INTERVAL,
                "account_id": 1,
            },
        ),
    }
    return of_kind[kind]


def environment(home: Path, services: Services) -> dict[str, str]:
    """Return the settings of the triggerers: Airflow's defaults but for the connections and the folder."""
    noukai = {
        "conn_type": "noukai",
        "password": KEY,
        "host": services.base_url,
        "extra": {"looks_per_second": 150},
    }
    host, port = services.address.split(":")
    databricks = {
        "conn_type": "databricks",
        "host": f"https://{host}",
        "port": int(port),
        "password": "token",
    }
    dbt = {"conn_type": "dbt_cloud", "host": services.address, "login": "1", "password": "token"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "NOUKAI"))}
    return kept | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__TRIGGERER__QUEUES_ENABLED": "True",
        "AIRFLOW__TRIGGERER__CAPACITY": str(2 * TRIGGERS),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_NOUKAI_DEFAULT": json.dumps(noukai),
        "AIRFLOW_CONN_DATABRICKS_DEFAULT": json.dumps(databricks),
        "AIRFLOW_CONN_DBT_CLOUD_DEFAULT": json.dumps(dbt),
        "PYTHONPATH": str(CHECKOUT / "benchmarks"),
        "SSL_CERT_FILE": services.certificates,
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def main() -> None:
    """Print one line for each kind that is named; for all when none is."""
    kinds = sys.argv[1:] or list(KINDS)
    with tempfile.TemporaryDirectory() as folder, local_services(Path(folder)) as services:
        home = Path(folder, "airflow")
        home.mkdir()
        settings = environment(home, services)
        jobs = services.submit()
        Path(folder, "rows.json").write_text(json.dumps(queues(kinds, services, jobs, home)))
        for command in (
            [str(Path(sys.executable).with_name("airflow")), "db", "migrate"],
            [sys.executable, str(CHECKOUT / "benchmarks" / "triggerer_rows.py"), f"{folder}/rows.json"],
        ):
            done = subprocess.run(command, env=settings, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{command} failed:\n{(done.stdout + done.stderr)[-4000:]}")
        print(f"{'':11}{'CPU s/min of the':>22}{'':>9}{'longest pause s':>19}")
        heads = f"{'':11}{'runner':>8}{'supervisor':>14}{'MB':>9}{'starting':>10}{'steady':>9}"
        print(f"{heads}{'blocked':>9}{'looks/s':>9}   runner / bare's, supervisor / sleep's")
        spent: dict[str, Spent] = {}
        for kind in kinds:
            spent[kind] = found = measure(kind, home, settings, services)
            line = f"{kind:11}{found.runner:>8.2f}{found.supervisor:>14.2f}{found.memory:>9.1f}"
            line += f"{found.starting_pause:>10.2f}{found.steady_pause:>9.2f}"
            line += f"{found.blocked:>9}{found.looks:>9.1f}"
            if "bare" in spent:
                line += f"   {found.runner / spent['bare'].runner:.2f}"
            if "sleep" in spent:
                line += f"  {found.supervisor / spent['sleep'].supervisor:.2f}"
            print(line, flush=True)
        if "sleep" in spent and "noukai" in spent:
            print(f"\n{on_paper(unit_costs(spent['sleep'], spent['noukai']))}")


def unit_costs(asleep: Spent, ours: Spent) -> UnitCosts:
    """Return what one look and one waiting trigger cost."""
    return UnitCosts(
        look=(ours.runner - asleep.runner) / 60 / ours.looks,
        waiting=asleep.runner / 60 / TRIGGERS,
        supervised=ours.supervisor / 60 / TRIGGERS,
        memory=ours.memory / TRIGGERS,
    )


def measure(kind: str, home: Path, settings: dict[str, str], services: Services) -> Spent:
    """Let a triggerer with nothing but the probe find the triggers of a kind, and measure it from then on."""
    log, pauses = home / f"{kind}.log", pauses_of(home, kind)
    command = [str(Path(sys.executable).with_name("airflow")), "triggerer", "--skip-serve-logs"]
    component = Component("triggerer", command, settings, log)
    # Rows wait in a queue of their own; without a queue they belong to this triggerer.
    _queue(home, probe_of(kind), None)
    component.start()
    try:
        lines = wait_until(
            lambda: pauses.exists() and pauses.read_text().splitlines(), "the probe", timeout=90
        )
        runner, supervisor = psutil.Process(int(lines[0])), psutil.Process(component.pid)
        time.sleep(IDLE)
        idle = _memory(supervisor) + _memory(runner)
        said, looks = len(log.read_text(errors="replace")), services.looks()
        _queue(home, kind, None)
        time.sleep(STARTING)
        with contextlib.suppress(ServerError):  # some have not all begun to look after two minutes
            if kind != "sleep":
                wait_until(lambda: services.looks() - looks >= TRIGGERS, "all to look", timeout=MORE, pause=1)
        began, looks = time.time(), services.looks()
        before = _cpu(runner), _cpu(supervisor)
        time.sleep(STEADY)
        seconds = time.time() - began
        looked = (services.looks() - looks) / seconds
        after = _cpu(runner), _cpu(supervisor)
        memory = (_memory(supervisor) + _memory(runner) - idle) / 1e6
        late = [tuple(map(float, line.split())) for line in pauses.read_text().splitlines()[1:]]
        return Spent(
            runner=(after[0] - before[0]) / seconds * 60,
            supervisor=(after[1] - before[1]) / seconds * 60,
            memory=memory,
            starting_pause=max((pause for at, pause in late if at < began), default=0.0),
            steady_pause=max((pause for at, pause in late if at >= began), default=0.0),
            blocked=log.read_text(errors="replace")[said:].count("async thread was blocked"),
            looks=looked,
        )
    finally:
        component.kill()
        _queue(home, None, kind)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _memory(process: psutil.Process) -> int:
    return process.memory_full_info().uss


def _queue(home: Path, before: str | None, after: str | None) -> None:
    with contextlib.closing(sqlite3.connect(home / "airflow.db", timeout=30)) as database, database:
        database.execute("UPDATE trigger SET queue = ? WHERE queue IS ?", (after, before))


@contextlib.contextmanager
def local_services(folder: Path) -> Iterator[Services]:
    """Run the server of all kinds in a process of its own."""
    command = [sys.executable, CHECKOUT / "benchmarks" / "prefect_peer_services.py", folder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Services(**json.loads(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait(10)


if __name__ == "__main__":
    main()
