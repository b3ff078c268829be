"""A real Airflow on this machine, for the demo and the tests, in a separate folder, on free ports.

The same four kinds of process as `airflow standalone` starts (scheduler, DAG processor, triggerer, API
server), with SQLite and the LocalExecutor, but each started by itself, so that one of them can be stopped,
killed, stalled or restarted while the others go on. There are two API servers, one for people and one for
tasks. Nothing here imports Airflow: it may run from any environment that has httpx.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

import httpx

from devtools.processes import (
    IDLE_CONNECTIONS,
    LONGEST_WAIT,
    Component,
    ServerError,
    descendants,
    free_port,
    title,
    wait_until,
)

_START_SECONDS = 300.0

# How long a process waits for SQLite's only lock. The API server for people waits for itself now and then:
# its event loop writes an audit record while a request that holds the lock waits for the loop. The sooner it
# gives up, the better, and in any case before the other processes do. A triggerer that gives up ends, and an
# API server for tasks fails the task that it should retry.
_LOCK_SECONDS = 120
_API_LOCK_SECONDS = 2

# SQLite has no row locks: when a user clears a task whose end the scheduler is processing, its row has
# another id before the scheduler writes it. SQLAlchemy then raises `StaleDataError`, with which Airflow
# 3.3.2's scheduler ends itself. On PostgreSQL, the clear would wait, and what it writes would hold, as it
# does here if nothing is raised.
_LOCAL_SETTINGS = """\
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

SQLiteDialect.supports_sane_rowcount = False
"""

FINAL_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


class LocalAirflow:
    """A running Airflow. Use it as a context manager, or call `start` and always `stop`.

    Args:
        binaries: The folder with the `airflow` command, such as `.venv/airflow/bin`.
        home: An empty folder for the database, the configuration and the logs.
        dags: The folders to read DAGs from.
        database_url: An empty database in SQLAlchemy's terms. By default an SQLite in `home`.
        environment: More variables for every process, such as `AIRFLOW_CONN_NOUKAI_DEFAULT`.
        parallelism: How many tasks may run at the same time.
    """

    def __init__(
        self,
        binaries: Path,
        home: Path,
        dags: Sequence[Path],
        *,
        database_url: str | None = None,
        environment: Mapping[str, str] | None = None,
        parallelism: int = 4,
    ) -> None:
        self.home = home
        self.port, self._execution_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._airflow = str(Path(binaries) / "airflow")
        self._given_database = database_url
        self._environment = self._settings(Path(binaries), dags, parallelism) | dict(environment or {})
        self._client = httpx.Client(
            base_url=self.url,
            timeout=LONGEST_WAIT,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=IDLE_CONNECTIONS),
        )
        self._stopped = False
        self.components: dict[str, Component] = {}
        self.scheduler = self._component("scheduler")
        self.dag_processor = self._component("dag-processor")
        self.triggerer = self._component("triggerer")
        self.api_server = self._api_server(
            "core", self.port, {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self._database_url(_API_LOCK_SECONDS)}
        )
        self.execution_api = self._api_server("execution", self._execution_port, {})

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Make the database, start every process, and return when DAGs can be run.

        Ends what it began when it fails.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        write_local_settings(self.home)
        atexit.register(self.stop)
        try:
            self._migrate()
            for component in self.components.values():
                component.start()
            wait_until(
                self._healthy,
                "Airflow to come up",
                timeout=_START_SECONDS,
                pause=0.5,
                alive=self._check_alive,
            )
        except BaseException as error:
            self.stop()
            if isinstance(error, ServerError):
                raise ServerError(f"{error}\n{self._last_lines()}") from None
            raise
        return self

    def stop(self) -> None:
        """End every process that this object started. Calling it twice does no harm."""
        if self._stopped:
            return
        self._stopped = True
        for component in self.components.values():
            component.retire()
            component.ask_to_stop()
        for component in self.components.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                component.stop()
        self._client.close()
        atexit.unregister(self.stop)

    def extra_triggerer(self, name: str = "triggerer-2", *arguments: str) -> Component:
        """Start one more triggerer; it ends with the others."""
        component = self._extra_triggerer(name, *arguments)
        component.start()
        return component

    # What a user does

    def trigger(
        self, dag_id: str, conf: Mapping[str, Any] | None = None, *, logical_date: datetime | None = None
    ) -> str:
        """Run a DAG, and return the id of the run."""
        wait_until(
            lambda: self._knows(dag_id), f"DAG {dag_id} to be parsed", timeout=_START_SECONDS, pause=0.5
        )
        run_id = f"manual__{uuid4().hex}"
        date = None if logical_date is None else logical_date.isoformat()
        body = {"dag_run_id": run_id, "logical_date": date, "conf": dict(conf or {})}
        self._call("POST", f"/dags/{dag_id}/dagRuns", body)
        return run_id

    def task(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return everything that the API says about a task instance."""
        response: dict[str, Any] = self._call("GET", self._task_path(dag_id, run_id, task_id, map_index))
        return response

    def task_state(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str | None:
        """Return the state of a task instance."""
        state: str | None = self.task(dag_id, run_id, task_id, map_index)["state"]
        return state

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a DAG run."""
        return str(self._call("GET", f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}")["state"])

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
    ) -> Any:
        """Return an XCom, or `None` when there is none."""
        path = f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}/taskInstances/{task_id}/xcomEntries/{key}"
        response = self._request("GET", f"{path}?map_index={map_index}&deserialize=false&stringify=false")
        if response.status_code == 404:
            return None
        return self._parsed(response)["value"]

    def xcom_keys(self, dag_id: str, run_id: str, task_id: str) -> set[str]:
        """Return the keys of the XComs that a task has pushed."""
        path = f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}/taskInstances/{task_id}/xcomEntries"
        return {entry["key"] for entry in self._call("GET", path)["xcom_entries"]}

    def links(self, dag_id: str, run_id: str, task_id: str) -> dict[str, str | None]:
        """Return the extra links of a task as the web page shows them."""
        path = f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}/taskInstances/{task_id}/links"
        links: dict[str, str | None] = self._call("GET", path)["extra_links"]
        return links

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int = -1) -> None:
        """Mark a task instance as `failed` or `success`, as a user does in the web page."""
        self._call("PATCH", self._task_path(dag_id, run_id, task_id, map_index), {"new_state": state})

    def mark_run(self, dag_id: str, run_id: str, state: str) -> None:
        """Mark a whole DAG run."""
        self._call("PATCH", f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}", {"state": state})

    def clear(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        map_index: int | None = None,
        *,
        keep_task_state: bool = False,
    ) -> None:
        """Clear a task instance, so that it runs again. Its state can be kept since Airflow 3.4."""
        task: Any = task_id if map_index is None else [task_id, map_index]
        body: dict[str, Any] = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": [task],
            "only_failed": False,
            "reset_dag_runs": True,
        }
        if keep_task_state:
            body["keep_task_state"] = True
        self._call("POST", f"/dags/{dag_id}/clearTaskInstances", body)

    def pause(self, dag_id: str, *, paused: bool = True) -> None:
        """Pause a DAG, or let it run again."""
        self._call("PATCH", f"/dags/{dag_id}?update_mask=is_paused", {"is_paused": paused})

    def add_connection(self, connection_id: str, **fields: Any) -> None:
        """Store a connection in the database, as the web page does."""
        self._call("POST", "/connections", {"connection_id": connection_id, **fields})

    def change_connection(self, connection_id: str, **fields: Any) -> None:
        """Change fields of a connection in the database."""
        mask = "&".join(f"update_mask={name}" for name in fields)
        wanted = {"connection_id": connection_id, **fields}
        self._call("PATCH", f"/connections/{connection_id}?{mask}", wanted)

    def get(self, path: str) -> Any:
        """Read anything else from the public API, by its path after `/api/v2`."""
        return self._call("GET", path)

    def post(self, path: str, body: Any) -> Any:
        """Do anything else through the public API."""
        return self._call("POST", path, body)

    def web_page_data(self, path: str) -> Any:
        """Read what the web page itself reads, by its path after `/ui`."""
        return self._parsed(self._request("GET", path, root="/ui"))

    # What a test or a demo reads

    def wait_for(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        *states: str | None,
        map_index: int = -1,
        timeout: float = LONGEST_WAIT,
    ) -> str | None:
        """Wait until a task instance is in one of the states (without any: in a final one), and return it."""
        wanted = states or tuple(FINAL_STATES)
        seen: list[str | None] = [None]

        def arrived() -> bool:
            seen[0] = self.task_state(dag_id, run_id, task_id, map_index)
            return seen[0] in wanted

        what = f"task {dag_id}.{task_id} of {run_id} to be {' or '.join(map(str, wanted))}"
        try:
            wait_until(arrived, what, timeout=timeout, pause=0.5)
        except ServerError as error:
            text = self.logs(dag_id, run_id, task_id, map_index)
            reasons = "\n".join(self.scheduler_warnings(run_id)) or "nothing"
            raise ServerError(
                f"{error}; it is {seen[0]}. Its log:\n{text[-4000:]}\nThe scheduler says:\n{reasons}"
            ) from None
        return seen[0]

    def logs(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
        """Return all that a task instance has logged, in every try, on workers and in triggerers."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        if map_index >= 0:
            folder /= f"map_index={map_index}"
        files = sorted(folder.glob("attempt=*.log*")) if folder.is_dir() else []
        return "".join(file.read_text(errors="replace") for file in files)

    def scheduler_warnings(self, run_id: str) -> list[str]:
        """Return the warnings of the scheduler about a run: why a task failed without a line of its own."""
        lines = self.scheduler.log.read_text(errors="replace").splitlines()
        levels = ("[warning", "[error")
        return [line[:2000] for line in lines if run_id in line and any(level in line for level in levels)][
            -20:
        ]

    def task_process(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> int:
        """Return the id of the process that runs a task's code, not of its supervisor."""
        wanted = f"airflow worker -- {self.task(dag_id, run_id, task_id, map_index)['id']}"
        found = [
            pid
            for component in self.task_runners
            for pid in descendants(component.pid)
            if title(pid) == wanted
        ]
        if len(found) != 1:
            raise ServerError(f"found {len(found)} processes with the title {wanted!r}, not one")
        return found[0]

    @property
    def task_runners(self) -> Sequence[Component]:
        """The processes below which tasks run."""
        return [self.scheduler]

    # Inside

    @property
    def _database(self) -> Path:
        return self.home / "airflow.db"

    def _database_url(self, lock_seconds: float) -> str:
        return self._given_database or f"sqlite:///{self._database}?timeout={lock_seconds:g}"

    def _settings(self, binaries: Path, dags: Sequence[Path], parallelism: int) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AIRFLOW_", "PYTHON", "NOUKAI_")) and name != "VIRTUAL_ENV"
        }
        bundles = [
            {
                "name": f"dags-{index}",
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(folder), "refresh_interval": 5},
            }
            for index, folder in enumerate(dags)
        ]
        return inherited | {
            "PATH": f"{binaries}{os.pathsep}{inherited.get('PATH', '')}",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self._database_url(_LOCK_SECONDS),
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(parallelism),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags[0]),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{self._execution_port}/execution/",
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def _component(
        self, command: str, *arguments: str, name: str = "", environment: Mapping[str, str] | None = None
    ) -> Component:
        component = Component(
            name or command,
            [self._airflow, command, *arguments],
            self._environment | dict(environment or {}),
            self.home / f"{name or command}.log",
        )
        self.components[component.name] = component
        return component

    def _api_server(self, apps: str, port: int, environment: Mapping[str, str]) -> Component:
        arguments = ("--apps", apps, "--host", "127.0.0.1", "--port", str(port), "--workers", "1")
        # With fifteen connections, the default: the event loop waits for one to check a user's token, and
        # those that have them wait for the event loop. Nothing is responded to for minutes.
        more = {"AIRFLOW__DATABASE__SQL_ALCHEMY_MAX_OVERFLOW": "-1", **environment}
        return self._component("api-server", *arguments, name=f"api-server-{apps}", environment=more)

    def _extra_triggerer(self, name: str, *arguments: str) -> Component:
        port = {"AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port())}
        return self._component("triggerer", *arguments, name=name, environment=port)

    def _migrate(self) -> None:
        command = [self._airflow, "db", "migrate"]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=_START_SECONDS
        )
        if done.returncode != 0:
            raise ServerError(f"`airflow db migrate` failed:\n{(done.stdout + done.stderr)[-4000:]}")
        if self._given_database is not None:
            return
        with contextlib.closing(sqlite3.connect(self._database)) as database:
            # Readers and a writer do not lock each other out then; the mode stays with the file.
            database.execute("PRAGMA journal_mode=WAL")
            _never_reuse_trigger_ids(database)

    def responds(self) -> bool:
        """Return whether both API servers respond."""
        return bool(self._health()) and self._serves_tasks()

    def _serves_tasks(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self._execution_port}/execution/health"
            return self._client.get(url).status_code == 200
        except httpx.TransportError:
            return False

    def _health(self) -> dict[str, Any]:
        try:
            health = self._client.get("/api/v2/monitor/health")
        except httpx.TransportError:
            return {}
        return dict(health.json()) if health.status_code == 200 else {}

    def _healthy(self) -> bool:
        parts = self._health()
        return self._serves_tasks() and all(
            (parts.get(part) or {}).get("status") == "healthy"
            for part in ("scheduler", "triggerer", "dag_processor")
        )

    def _check_alive(self) -> None:
        for component in self.components.values():
            if not component.running:
                raise ServerError(f"Airflow's {component.name} ended by itself")

    def _last_lines(self) -> str:
        logs = [component.log for component in self.components.values() if component.log.exists()]
        return "\n".join(f"{log}:\n{log.read_text(errors='replace')[-2000:]}" for log in logs)

    def _knows(self, dag_id: str) -> bool:
        return self._request("GET", f"/dags/{dag_id}").status_code == 200

    def _task_path(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
        path = f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}/taskInstances/{task_id}"
        return path if map_index < 0 else f"{path}/{map_index}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        return self._parsed(self._request(method, path, body))

    def _request(self, method: str, path: str, body: Any = None, *, root: str = "/api/v2") -> httpx.Response:
        deadline = time.monotonic() + LONGEST_WAIT
        while True:
            response = self._client.request(method, f"{root}{path}", json=body)
            if response.status_code == 401:
                token = self._client.get("/auth/token").json()["access_token"]
                self._client.headers["Authorization"] = f"Bearer {token}"
            elif not _database_was_busy(response) or time.monotonic() > deadline:
                return response
            else:
                time.sleep(0.2)

    def _parsed(self, response: httpx.Response) -> Any:
        if response.is_error:
            request = response.request
            raise ServerError(
                f"{request.method} {request.url} -> {response.status_code}: {response.text[:1000]}"
            )
        return response.json() if response.content else None


def write_local_settings(home: Path) -> None:
    """Write the settings in Python that every process of an Airflow with this home reads."""
    folder = home / "config"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "airflow_local_settings.py").write_text(_LOCAL_SETTINGS)


def _never_reuse_trigger_ids(database: sqlite3.Connection) -> None:
    """Give each trigger an id of its own, as PostgreSQL and MySQL do.

    In Airflow's own schema SQLite gives the id of the last trigger away again once that trigger is deleted.
    After a clear, an event of the earlier try then resumes the next one a moment after its deferral, which
    the scheduler takes for a failure (docs/upstream/airflow-trigger-ids.md).
    """
    select = "SELECT sql FROM sqlite_master WHERE tbl_name = 'trigger' AND type = ? AND sql NOT NULL"
    [(table,)] = database.execute(select, ["table"])
    indexes = [index for (index,) in database.execute(select, ["index"])]
    with_sequence = table.replace("id INTEGER NOT NULL", "id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL")
    with_sequence = re.sub(r",\s*CONSTRAINT trigger_pkey PRIMARY KEY \(id\)", "", with_sequence)
    if "AUTOINCREMENT" not in with_sequence or "trigger_pkey" in with_sequence:
        raise ServerError(f"Airflow defines its triggers in another way:\n{table}")
    for statement in ("DROP TABLE trigger", with_sequence, *indexes):
        database.execute(statement)


def _database_was_busy(response: httpx.Response) -> bool:
    """Return whether nothing has happened because SQLite's only lock was held, so that a retry is safe.

    Airflow 3.1 does not catch the exception, and its response names no reason.
    """
    unnamed = response.text.strip() == "Internal Server Error"
    return response.status_code == 500 and (unnamed or "Database error" in response.text)


def _quoted(run_id: str) -> str:
    return quote(run_id, safe="")
