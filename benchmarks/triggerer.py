"""A thousand deferred jobs in a real triggerer, polled every 10 s over TLS, beside its peers.

    .venv/airflow-peers/bin/python benchmarks/triggerer.py [KIND …] [--triggers 1000] [--interval 10]

(`make .venv/airflow-peers/ready` builds that environment.) For each row of the table, a separate triggerer
starts, is idle, and then finds a thousand deferred tasks in the database at once:

- sleep: triggers that only sleep;
- bare: triggers that poll over one shared aiohttp session, a thousand together, as they started;
- spread: the same, but spread as evenly as this project's polls;
- noukai: this project's trigger, with a fixed interval of 10 s and a rate limit of 150 polls per second,
  which follows the states of its job (`follow="state"`);
- unfollowed, streams: the same without (`follow=None`), and with the streams of the steps of 50 of the jobs;
- databricks, dbt: the triggers of those providers, their interval set to 10 s.

All poll one local server. All but the last two start one after the other and are then measured at the same
time, so that the noise of the machine is the same for all; those two, each of which keeps a core busy,
follow one by one. CPU is that of `STEADY` seconds, as seconds a minute; memory is what a thousand
triggers add to what the idle processes have written to and share with no other. `blocked` counts Airflow's
warnings of a blocked loop from their start on, `lines` what the triggers logged of their jobs; `pause` is the
longest time that a trigger beside the thousand waited for its turn, while they started and after that.
`left` are the asyncio tasks and the open files that stay in the runner once the thousand are taken from it,
beyond those of an idle one. Last comes what follows for larger numbers (`scale.py`). Everything ends by
itself after about twelve minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from local_services import local_services
from scale import UnitCosts, on_paper

from devtools.processes import Component, ServerError, free_port, wait_until
from noukai_core import Noukai
from noukai_core.emulator import EmulatorControl

CHECKOUT = Path(__file__).resolve().parents[1]
KEY = "nk_test_benchmrk_0123456789abcdef0123456789abcdef"
FLOW = "acme/benchmark/jobs"
TRIGGERS, INTERVAL = 1000, 10
SPARE_POLLS = 1.5
IDLE, STARTING, MORE, STEADY, LEAVING = 5, 25, 95, 60, 120
FOREVER = 7200.0
Trigger = tuple[str, dict[str, Any]]
BARE = {"bare": "triggerer_peers.BareTrigger", "spread": "triggerer_peers.SpreadTrigger"}
SIDE_BY_SIDE = (("sleep", "bare", "spread", "unfollowed", "noukai", "streams"), ("databricks",), ("dbt",))
STREAMS = 50


@dataclass(frozen=True)
class Spent:
    """What the triggers of one kind took: processor seconds a minute, MB, seconds, and warnings."""

    runner: float
    supervisor: float
    memory: float
    starting_pause: float
    steady_pause: float
    blocked: int
    lines: int
    polls: float
    left: tuple[int, int]


class Services:
    """The server of all kinds of triggers, and how many of them poll it how often."""

    def __init__(self, address: str, certificates: str, triggers: int, interval: int) -> None:
        self.triggers, self.interval = triggers, interval
        self.address, self.certificates = address, certificates
        self.base_url = f"https://{address}/api/v1"
        context = ssl.create_default_context(cafile=certificates)
        self.control = EmulatorControl(self.base_url, verify=context)
        self._client = httpx.Client(base_url=f"https://{address}", verify=context, trust_env=False)
        os.environ["SSL_CERT_FILE"] = certificates
        self._jobs: dict[str, list[str]] = {}
        self._runs: dict[str, int] = {}

    def submit(self, kind: str) -> list[str]:
        """Submit the jobs of one kind of triggers, and return their ids."""
        self.control.script("*", after_seconds=FOREVER)
        with Noukai(KEY, base_url=self.base_url) as client:
            self._jobs[kind] = [client.flow(FLOW).job("a job").id for _ in range(self.triggers)]
        return self._jobs[kind]

    def begin_run(self, kind: str) -> int:
        """Begin what the triggers of a peer wait for, and return its number."""
        begun = self._client.post("/benchmark/runs", json={"seconds": FOREVER}).json()
        self._runs[kind] = begun["number"]
        return self._runs[kind]

    def polls(self, kind: str) -> int:
        """Count the polls of one kind of triggers so far."""
        if kind in self._runs:
            polls: int = self._client.get(f"/benchmark/runs/{self._runs[kind]}").json()["requests"]
            return polls
        return sum(self._polls_by_job(kind))

    def polled(self, kind: str) -> int:
        """Count the triggers of one kind that poll already; those of a peer all poll one run."""
        return self.polls(kind) if kind in self._runs else sum(map(bool, self._polls_by_job(kind)))

    def _polls_by_job(self, kind: str) -> list[int]:
        own = set(self._jobs.get(kind, ()))
        return [job["polls"] for job in self.control.jobs() if job["id"] in own]


def queues(kinds: list[str], services: Services, home: Path) -> dict[str, list[Trigger]]:
    """Return the triggers that wait in each queue: a probe and the thousand for every kind."""
    waiting: dict[str, list[Trigger]] = {}
    for kind in kinds:
        pauses = {"seconds": 0.02, "url": str(home / f"{kind}.pauses")}
        waiting[f"probe-{kind}"] = [("triggerer_peers.PauseProbe", pauses)]
        waiting[f"later-{kind}"] = _triggers(kind, services)
    return waiting


def _triggers(kind: str, services: Services) -> list[Trigger]:
    if kind in ("databricks", "dbt"):
        return [_peer(kind, services.begin_run(kind), services.interval)] * services.triggers
    if kind == "sleep":
        return [("triggerer_peers.SleepTrigger", {"seconds": services.interval})] * services.triggers
    jobs = services.submit(kind)
    if kind in BARE:
        url = f"{services.base_url}/seq/{FLOW}/jobs"
        return [(BARE[kind], {"seconds": services.interval, "url": f"{url}/{job}"}) for job in jobs]
    ours = "noukai_airflow.triggers.noukai.NoukaiJobTrigger"
    follow = None if kind == "unfollowed" else "state"
    arguments = {"flow": FLOW, "poll_interval": services.interval, "follow": follow}
    streams = STREAMS if kind == "streams" else 0
    return [
        (ours, arguments | {"job_id": job} | ({"follow": "steps"} if place < streams else {}))
        for place, job in enumerate(jobs)
    ]


def _peer(kind: str, run: int, interval: int) -> Trigger:
    if kind == "databricks":
        return (
            "airflow.providers.databricks.triggers.databricks.DatabricksExecutionTrigger",
            {"run_id": run, "databricks_conn_id": "databricks_default", "polling_period_seconds": interval},
        )
    return (
        "airflow.providers.dbt.cloud.triggers.dbt.DbtCloudRunJobTrigger",
        {
            "conn_id": "dbt_cloud_default",
            "run_id": run,
            "end_time": time.time() + FOREVER,
            "poll_interval": interval,
            "account_id": 1,
        },
    )


def environment(home: Path, services: Services) -> dict[str, str]:
    """Return the settings of the triggerers: Airflow's defaults but for the connections and the folder."""
    noukai = {
        "conn_type": "noukai",
        "password": KEY,
        "host": services.base_url,
        "extra": {"max_polls_per_second": SPARE_POLLS * services.triggers / services.interval},
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
        "AIRFLOW__TRIGGERER__CAPACITY": str(2 * services.triggers),
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = [kind for group in SIDE_BY_SIDE for kind in group]
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(kinds)}; by default all")
    parser.add_argument("--triggers", type=int, default=TRIGGERS, help="of each kind")
    parser.add_argument("--interval", type=int, default=INTERVAL, help="seconds between two polls of a job")
    given = parser.parse_args()
    if unknown := set(given.kinds) - set(kinds):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    chosen = given.kinds or kinds
    with (
        tempfile.TemporaryDirectory() as folder,
        local_services(Path(folder)) as (address, certificates),
    ):
        services = Services(address, certificates, given.triggers, given.interval)
        home = Path(folder, "airflow")
        home.mkdir()
        settings = environment(home, services)
        Path(folder, "rows.json").write_text(json.dumps(queues(chosen, services, home)))
        for command in (
            [str(Path(sys.executable).with_name("airflow")), "db", "migrate"],
            [sys.executable, str(CHECKOUT / "benchmarks" / "triggerer_rows.py"), f"{folder}/rows.json"],
        ):
            done = subprocess.run(command, env=settings, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{command} failed:\n{(done.stdout + done.stderr)[-4000:]}")
        print(f"{'':11}{'CPU s/min of the':>22}{'':>9}{'longest pause s':>19}")
        heads = f"{'':11}{'runner':>8}{'supervisor':>14}{'MB':>9}{'starting':>10}{'steady':>9}"
        print(
            f"{heads}{'blocked':>9}{'lines':>7}{'polls/s':>9}{'left':>9}   runner / bare's, / spread's, "
            "supervisor / sleep's; runner, MB / unfollowed's"
        )
        spent: dict[str, Spent] = {}
        for group in SIDE_BY_SIDE:
            found = side_by_side([kind for kind in group if kind in chosen], home, settings, services)
            spent |= found
            for kind in found:
                print(line_of(kind, spent), flush=True)
        if "sleep" in spent and "noukai" in spent:
            print(f"\n{on_paper(unit_costs(spent['sleep'], spent['noukai'], given.triggers))}")


def line_of(kind: str, spent: dict[str, Spent]) -> str:
    """Return the line of the table for one kind."""
    found = spent[kind]
    line = f"{kind:11}{found.runner:>8.2f}{found.supervisor:>14.2f}{found.memory:>9.1f}"
    line += f"{found.starting_pause:>10.2f}{found.steady_pause:>9.2f}{found.blocked:>9}{found.lines:>7}"
    line += f"{found.polls:>9.1f}{'{:+d} {:+d}'.format(*found.left):>9}"
    peers = [spent[peer].runner for peer in BARE if peer in spent]
    line += "  " + "".join(f"{found.runner / peer:>8.2f}" for peer in peers)
    if "sleep" in spent:
        line += f"{found.supervisor / spent['sleep'].supervisor:>8.2f}"
    if kind in ("noukai", "streams") and (without := spent.get("unfollowed")):
        line += f"{found.runner / without.runner:>8.2f}{found.memory / without.memory:>8.2f}"
    return line


def unit_costs(asleep: Spent, ours: Spent, triggers: int) -> UnitCosts:
    """Return what one poll and one waiting trigger cost."""
    return UnitCosts(
        poll=(ours.runner - asleep.runner) / 60 / ours.polls,
        waiting=asleep.runner / 60 / triggers,
        supervised=ours.supervisor / 60 / triggers,
        memory=ours.memory / triggers,
    )


def side_by_side(
    kinds: list[str], home: Path, settings: dict[str, str], services: Services
) -> dict[str, Spent]:
    """Start the triggerers of some kinds one after the other, then measure all of them at the same time."""
    with contextlib.ExitStack() as stack:
        watched = [stack.enter_context(Watched(kind, home, settings, services)) for kind in kinds]
        time.sleep(services.interval if watched else 0)  # what the first polls led to is done by then
        for each in watched:
            each.begin()
        time.sleep(max(STEADY, 2 * services.interval) if watched else 0)
        measured = {each.kind: each.end() for each in watched}
        for each in watched:
            each.release()
        with contextlib.suppress(ServerError):  # `left` shows it
            wait_until(
                lambda: all(each.released for each in watched),
                "all to leave",
                timeout=_scaled(LEAVING, services.triggers),
            )
        time.sleep(IDLE)
        return {each.kind: replace(measured[each.kind], left=each.left()) for each in watched}


def _scaled(seconds: float, triggers: int) -> float:
    return seconds * max(1, triggers / TRIGGERS)


class Watched:
    """A triggerer that starts with nothing but the probe, then finds the triggers of a kind."""

    def __init__(self, kind: str, home: Path, settings: dict[str, str], services: Services) -> None:
        self.kind = kind
        self._home, self._services = home, services
        self._log, self._pauses = home / f"{kind}.log", home / f"{kind}.pauses"
        program = str(Path(sys.executable).with_name("airflow"))
        command = [program, "triggerer", "--skip-serve-logs", "--queues", f"probe-{kind},{kind}"]
        self._component = Component("triggerer", command, settings, self._log)

    def __enter__(self) -> Self:
        """Start it, and return once all of its triggers have polled."""
        self._component.start()
        lines = wait_until(
            lambda: self._pauses.exists() and self._pauses.read_text().splitlines(), "the probe", timeout=90
        )
        self._runner, self._supervisor = psutil.Process(int(lines[0])), psutil.Process(self._component.pid)
        time.sleep(IDLE)
        self._idle, self._said = self._memory(), len(self._log.read_text(errors="replace"))
        self._tasks, self._files = self._counted()
        self._move(f"later-{self.kind}", self.kind)
        time.sleep(STARTING)
        with contextlib.suppress(ServerError):  # some have not all begun to poll after two minutes
            if self.kind != "sleep":
                triggers = self._services.triggers
                wait_until(
                    lambda: self._services.polled(self.kind) >= triggers,
                    "all to poll",
                    timeout=_scaled(MORE, triggers),
                    pause=1,
                )
        return self

    def __exit__(self, *_: object) -> None:
        self._component.kill()

    def begin(self) -> None:
        """Measure from now on."""
        self._polls, self._began = self._services.polls(self.kind), time.time()
        self._before = _cpu(self._runner), _cpu(self._supervisor)

    def end(self) -> Spent:
        """Return what it took since then."""
        seconds = time.time() - self._began
        after = _cpu(self._runner), _cpu(self._supervisor)
        polls = self._services.polls(self.kind) - self._polls
        late = [tuple(map(float, line.split())) for line in self._pauses.read_text().splitlines()[1:]]
        return Spent(
            runner=(after[0] - self._before[0]) / seconds * 60,
            supervisor=(after[1] - self._before[1]) / seconds * 60,
            memory=(self._memory() - self._idle) / 1e6,
            starting_pause=max((pause for at, pause in late if at < self._began), default=0.0),
            steady_pause=max((pause for at, pause in late if at >= self._began), default=0.0),
            blocked=self._log.read_text(errors="replace")[self._said :].count("async thread was blocked"),
            lines=self._lines(),
            polls=polls / seconds,
            left=(0, 0),
        )

    def release(self) -> None:
        """Take the triggers from it, as if another triggerer ran them now."""
        self._move(self.kind, f"later-{self.kind}")

    @property
    def released(self) -> bool:
        """Whether most of them have left."""
        return self._counted()[0] < self._tasks + self._services.triggers / 10

    def left(self) -> tuple[int, int]:
        """Return how many more asyncio tasks and open files the runner has than when it was idle."""
        tasks, files = self._counted()
        return tasks - self._tasks, files - self._files

    def _counted(self) -> tuple[int, int]:
        tasks = wait_until(self._pauses.with_suffix(".tasks").read_text, "the number of tasks", timeout=90)
        return int(tasks), self._runner.num_fds()

    def _move(self, queue: str, to: str) -> None:
        with contextlib.closing(sqlite3.connect(self._home / "airflow.db", timeout=30)) as rows, rows:
            change = "UPDATE trigger SET queue = ?, triggerer_id = NULL WHERE queue = ?"
            rows.execute(change, (to, queue))

    def _lines(self) -> int:
        folder = self._home / "logs" / "dag_id=benchmark" / f"run_id=later-{self.kind}"
        return sum(each.read_text(errors="replace").count('"Noukai job') for each in folder.rglob("*.log"))

    def _memory(self) -> int:
        # Not the USS: when others start, a triggerer loses the libraries that it shares with them.
        maps = [*self._runner.memory_maps(), *self._supervisor.memory_maps()]
        return sum(each.private_dirty for each in maps)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
