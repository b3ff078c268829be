"""A real Prefect on this machine, for the demo and the tests, in a separate folder, on a free port.

The server (SQLite), and processes that run deployments: `serve`, as `flow.serve()` does it, and a process
worker. Nothing here imports Prefect: it may run from any environment that has httpx.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from devtools.processes import (
    IDLE_CONNECTIONS,
    LONGEST_WAIT,
    Component,
    ServerError,
    descendants,
    free_port,
    wait_until,
)

T = TypeVar("T")

_START_SECONDS = 300.0
_STOP_SECONDS = 20.0
_BUSY_SECONDS = 20.0
# A question takes the server a hundredth of a second, which the flow runs that are waited for need.
_PAUSE = 0.5
_LOGS_A_PAGE = 200
FINAL_STATES = frozenset({"Completed", "Failed", "TimedOut", "Cancelled", "Crashed"})

_SERVE = """
import sys
from prefect import serve
from prefect.flows import load_flow_from_entrypoint

name, *entrypoints = sys.argv[1:]
serve(
    *(load_flow_from_entrypoint(entrypoint).to_deployment(name) for entrypoint in entrypoints),
    pause_on_shutdown=False,
    print_starting_message=False,
)
"""

_DEPLOY = """
import sys
from prefect import flow

pool, command, folder, *entrypoints = sys.argv[1:]
for entrypoint in entrypoints:
    flow.from_source(source=folder, entrypoint=entrypoint).deploy(
        pool,
        work_pool_name=pool,
        job_variables={"command": command} if command else {},
        print_next_steps=False,
    )
"""

_SAVE_BLOCKS = """
import json
import sys
import noukai_prefect

for name, (kind, fields) in json.load(sys.stdin).items():
    if "credentials" in fields:
        fields["credentials"] = noukai_prefect.NoukaiCredentials.load(fields["credentials"])
    getattr(noukai_prefect, kind)(**fields).save(name, overwrite=True)
"""


class LocalPrefect:
    """A running Prefect. Use it as a context manager, or call `start` and always `stop`.

    Flow runs are named by their id, deployments by `flow-name/deployment-name`, as Prefect does.

    Args:
        binaries: The folder with the `prefect` command, such as `.venv/prefect/bin`.
        home: An empty folder for the database, the results and the logs of the processes.
        environment: More variables for every process.
        web_page: Whether the server has its web page.
    """

    def __init__(
        self,
        binaries: Path,
        home: Path,
        *,
        environment: Mapping[str, str] | None = None,
        web_page: bool = False,
    ) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = self._settings(Path(binaries)) | dict(environment or {})
        self._prefect = str(Path(binaries) / "prefect")
        self._python = str(Path(binaries) / "python")
        self._client = httpx.Client(
            base_url=f"{self.url}/api",
            timeout=LONGEST_WAIT,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=IDLE_CONNECTIONS),
        )
        self._stopped = False
        self.components: dict[str, Component] = {}
        self.server = self._component(
            "server",
            [
                *(self._prefect, "server", "start", "--host", "127.0.0.1", "--port", str(self.port)),
                "--ui" if web_page else "--no-ui",
            ],
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Create the database and start the server; return when it responds.

        Ends what it began when it fails.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        atexit.register(self.stop)
        try:
            self.server.start()
            self._until(self._healthy, "Prefect's server to come up", self.server, _START_SECONDS)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End every process that this object started. Calling it twice does no harm."""
        if self._stopped:
            return
        self._stopped = True
        for component in reversed(list(self.components.values())):
            component.retire()
            with contextlib.suppress(ServerError, subprocess.TimeoutExpired):
                self.end(component)
        self._client.close()
        atexit.unregister(self.stop)

    # What runs deployments

    def serve(
        self, *entrypoints: str, name: str = "local", environment: Mapping[str, str] | None = None
    ) -> Component:
        """Serve flows from one process, as `flow.serve()` does, and return it when they can be run.

        Args:
            *entrypoints: Each as `path/to/file.py:function`.
            name: The name of the deployments; with the flow's name before it: `my-flow/local`.
            environment: More variables for the process and its flow runs.
        """
        component = self._component(
            f"serve-{name}-{len(self.components)}",
            [self._python, "-c", _SERVE, name, *entrypoints],
            environment,
        )
        component.start()
        self._until_deployed(name, entrypoints, component)
        return component

    def deploy(self, *entrypoints: str, pool: str = "processes", command: str = "") -> None:
        """Deploy flows to a pool of processes, which is made for them. Nothing runs them yet.

        Args:
            *entrypoints: Each as `path/to/file.py:function`, all in the same folder.
            pool: The name of the pool, and of the deployments: `my-flow/processes`.
            command: What runs a flow run, instead of Prefect's own command.
        """
        self._run([self._prefect, "work-pool", "create", pool, "--type", "process"])
        folder = str(Path(entrypoints[0].rpartition(":")[0]).resolve().parent)
        names = [Path(entrypoint).name for entrypoint in entrypoints]
        self._run([self._python, "-c", _DEPLOY, pool, command, folder, *names])

    def work(self, pool: str = "processes", environment: Mapping[str, str] | None = None) -> Component:
        """Start a worker of a pool, and return it when it polls.

        Args:
            pool: The name of the pool.
            environment: More variables for the worker and its flow runs.
        """
        component = self._component(
            f"worker-{pool}",
            [self._prefect, "worker", "start", "--pool", pool, "--type", "process"],
            environment,
        )
        component.start()
        self._until(
            lambda: self._call("POST", f"/work_pools/{pool}/workers/filter", {}),
            f"a worker of {pool}",
            component,
            _START_SECONDS,
        )
        return component

    def serve_tasks(self, *entrypoints: str, environment: Mapping[str, str] | None = None) -> Component:
        """Start the process that runs background tasks, and return it without waiting.

        Args:
            *entrypoints: Each as `path/to/file.py:task`.
            environment: More variables for the process.
        """
        component = self._component(
            f"tasks-{len(self.components)}", [self._prefect, "task", "serve", *entrypoints], environment
        )
        component.start()
        return component

    def execute(self, flow_run_id: str, environment: Mapping[str, str] | None = None) -> Component:
        """Start the process that a container of a flow run is, and return it without waiting.

        Args:
            flow_run_id: The flow run; nothing else may serve its deployment.
            environment: More variables for the process.
        """
        component = self._component(
            f"execute-{len(self.components)}",
            [self._prefect, "flow-run", "execute", flow_run_id],
            environment,
        )
        component.start()
        return component

    def end(self, component: Component, timeout: float = _STOP_SECONDS) -> None:
        """End a process as a deployment would, with a SIGTERM, and kill what is left of it."""
        self._close(component, component.terminate, timeout)

    def kill(self, component: Component) -> None:
        """End a process and all that it started at once, as a machine that goes down would."""
        self._close(component, lambda timeout: component.kill(), _STOP_SECONDS)

    def flow_run_process(self, flow_run_id: str) -> int:
        """Return the id of the process that runs a flow run."""
        for pid in self.flow_run_processes(flow_run_id):
            return pid
        raise ServerError(f"found no process of flow run {flow_run_id}")

    def flow_run_processes(self, flow_run_id: str) -> list[int]:
        """Return the ids of all processes that run a flow run; none when it has ended or is suspended."""
        return [
            pid
            for component in self.components.values()
            if component.running
            for pid in descendants(component.pid)
            if _variable(pid, "PREFECT__FLOW_RUN_ID") == flow_run_id
        ]

    # What a user does

    def save_blocks(self, blocks: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
        """Save blocks of `noukai_prefect`, as the web page does.

        Args:
            blocks: By name, the class and the fields: `{"default": ("NoukaiCredentials", {"api_key": …})}`;
                credentials are named as the block that holds them.
        """
        self._run([self._python, "-c", _SAVE_BLOCKS], json.dumps(blocks))

    def run(self, deployment: str, parameters: Mapping[str, Any] | None = None) -> str:
        """Run a deployment, and return the id of the flow run."""
        found = self.deployment(deployment)
        body = {"parameters": dict(parameters or {}), "state": {"type": "SCHEDULED"}}
        return str(self._call("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"])

    def cancel(self, flow_run_id: str) -> None:
        """Cancel a flow run, as `prefect flow-run cancel` and the web page do."""
        self._set_state(flow_run_id, {"type": "CANCELLING"})

    def retry(self, flow_run_id: str) -> None:
        """Run a flow run again, as `prefect flow-run retry` does; its deployment has to be served."""
        self._set_state(flow_run_id, {"type": "SCHEDULED", "message": "Retried"}, force=True)

    def schedule_task_run(self, task_run_id: str) -> None:
        """Run a background task again, with the parameters that were stored for it."""
        states = self._call("GET", f"/task_run_states/?task_run_id={task_run_id}")
        details = next(state["state_details"] for state in states if state["type"] == "SCHEDULED")
        state = {"type": "SCHEDULED", "name": "Scheduled", "state_details": details}
        self._accepted(f"/task_runs/{task_run_id}", state, force=True)

    def mark(self, flow_run_id: str, state: str) -> None:
        """Give a flow run a state, such as `CRASHED`, as the UI does."""
        self._set_state(flow_run_id, {"type": state}, force=True)

    def resume(self, flow_run_id: str, run_input: Mapping[str, Any] | None = None) -> None:
        """Resume a suspended flow run with the input that it waits for."""
        response = self._call(
            "POST", f"/flow_runs/{flow_run_id}/resume", {"run_input": dict(run_input or {})}
        )
        if response["status"] != "ACCEPT":
            raise ServerError(f"flow run {flow_run_id} is not resumed: {response['details']}")

    def create_automation(self, automation: Mapping[str, Any]) -> None:
        """Create an automation, as the web page does."""
        self._call("POST", "/automations/", {"enabled": True, **automation})

    # What a test or a demo reads

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        """Return everything that the API says about a flow run."""
        response: dict[str, Any] = self._call("GET", f"/flow_runs/{flow_run_id}")
        return response

    def state(self, flow_run_id: str) -> str:
        """Return the name of a flow run's state."""
        return str((self.flow_run(flow_run_id).get("state") or {}).get("name"))

    def task_run(self, task_run_id: str) -> dict[str, Any]:
        """Return everything that the API says about a task run."""
        response: dict[str, Any] = self._call("GET", f"/task_runs/{task_run_id}")
        return response

    def deployment(self, name: str) -> dict[str, Any]:
        """Return everything that the API says about the deployment `flow-name/deployment-name`."""
        response: dict[str, Any] = self._call("GET", f"/deployments/name/{name}")
        return response

    def block(self, kind: str, name: str) -> dict[str, Any]:
        """Return a stored block as the API shows it, without its secrets.

        Args:
            kind: The slug of its type, such as `noukai-credentials`.
            name: Its name.
        """
        response: dict[str, Any] = self._call("GET", f"/block_types/slug/{kind}/block_documents/name/{name}")
        return response

    def task_runs(self, flow_run_id: str) -> list[dict[str, Any]]:
        """Return the task runs of a flow run, the oldest first; each has `name`, `state_name`, `state`."""
        runs: list[dict[str, Any]] = self._filtered(
            "task_runs", {"flow_runs": {"id": {"any_": [flow_run_id]}}}
        )
        return sorted(runs, key=lambda run: str(run["expected_start_time"]))

    def ended_task_runs(self, flow_run_id: str, timeout: float = LONGEST_WAIT) -> list[dict[str, Any]]:
        """Return the task runs of a flow run when all of them have ended.

        The server hears of a task run by events, which may come later than the end of the flow run.
        """

        def ended() -> list[dict[str, Any]]:
            found = self.task_runs(flow_run_id)
            return found if all(run["state_name"] in FINAL_STATES for run in found) else []

        return wait_until(ended, f"the task runs of {flow_run_id} to end", timeout, pause=_PAUSE)

    def artifacts(self, flow_run_id: str, key: str | None = None) -> list[dict[str, Any]]:
        """Return the artifacts of a flow run, of one key or of all."""
        wanted = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}}
        found: list[dict[str, Any]] = self._filtered("artifacts", wanted)
        return [artifact for artifact in found if key in (None, artifact["key"])]

    def logs(self, flow_run_id: str) -> list[str]:
        """Return what a flow run and its tasks have logged, the oldest first, as `LEVEL message`."""
        wanted = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_ASC"}
        names = dict(zip(range(10, 60, 10), _LEVELS, strict=True))
        return [
            f"{names.get(line['level'], line['level'])} {line['message']}"
            for line in self._filtered("logs", wanted)
        ]

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the events with this name, or with this beginning when it ends in `.*`."""
        kind = {"prefix": [event.removesuffix("*")]} if event.endswith("*") else {"name": [event]}
        found = self._call("POST", "/events/filter", {"filter": {"event": kind}, "limit": 50})
        response: list[dict[str, Any]] = found["events"]
        return response

    def result(self, flow_run_id: str) -> Any:
        """Return what a completed flow returned."""
        data = self.flow_run(flow_run_id)["state"]["data"]
        return json.loads((self.home / "storage" / Path(data["storage_key"]).name).read_text())

    def wait_for(self, flow_run_id: str, *states: str, timeout: float = LONGEST_WAIT) -> str:
        """Wait until a flow run is in one of the states (without any: in a final one), and name it."""
        wanted = frozenset(states) or FINAL_STATES
        seen = [""]

        def arrived() -> bool:
            seen[0] = self.state(flow_run_id)
            return seen[0] in wanted

        try:
            what = f"flow run {flow_run_id} to be {' or '.join(sorted(wanted))}"
            wait_until(arrived, what, timeout, pause=_PAUSE)
        except ServerError as error:
            lines = "\n".join(self.logs(flow_run_id)[-40:])
            raise ServerError(f"{error}; it is {seen[0]}. Its log:\n{lines}") from None
        return seen[0]

    # Inside

    def _settings(self, binaries: Path) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "PYTHON", "NOUKAI_")) and name != "VIRTUAL_ENV"
        }
        return inherited | {
            "PATH": f"{binaries}{os.pathsep}{inherited.get('PATH', '')}",
            "PREFECT_HOME": str(self.home),
            "PREFECT_PROFILES_PATH": str(self.home / "profiles.toml"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_CLI_PROMPT": "false",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.3",
            "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(self.home / "storage"),
            "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def _component(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Component:
        component = Component(
            name, command, self.environment | dict(environment or {}), self.home / f"{name}.log"
        )
        self.components[name] = component
        return component

    def _run(self, command: Sequence[str], given: str | None = None) -> None:
        done = subprocess.run(
            command,
            env=self.environment,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
        )
        if done.returncode != 0:
            raise ServerError(f"{Path(command[0]).name} failed:\n{(done.stdout + done.stderr)[-4000:]}")

    def _close(self, component: Component, close: Callable[[float], None], timeout: float) -> None:
        if not component.running:
            return
        children = list(descendants(component.pid))
        close(timeout)
        # A worker's flow runs are in separate groups.
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if _variable(pid, "PREFECT_API_URL") == self.environment["PREFECT_API_URL"]:
                    os.kill(pid, 9)

    def _until_deployed(self, name: str, entrypoints: Sequence[str], component: Component) -> None:
        wanted = {entrypoint.rpartition(":")[2].replace("_", "-") for entrypoint in entrypoints}

        def deployed() -> bool:
            return all(
                self._client.get(f"/deployments/name/{flow}/{name}").status_code == 200 for flow in wanted
            )

        self._until(deployed, f"{', '.join(sorted(wanted))} to be served", component, _START_SECONDS)

    def _until(self, condition: Callable[[], T], what: str, component: Component, timeout: float) -> T:
        def alive() -> None:
            if not component.running:
                raise ServerError(f"{component.name} ended by itself")

        try:
            return wait_until(condition, what, timeout, pause=_PAUSE, alive=alive)
        except ServerError as error:
            text = component.log.read_text(errors="replace")[-4000:]
            raise ServerError(f"{error}\n{component.log}:\n{text}") from None

    def _healthy(self) -> bool:
        try:
            return self._client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def _set_state(self, flow_run_id: str, state: Mapping[str, Any], *, force: bool = False) -> None:
        self._accepted(f"/flow_runs/{flow_run_id}", state, force=force)

    def _accepted(self, run: str, state: Mapping[str, Any], *, force: bool) -> None:
        response = self._call("POST", f"{run}/set_state", {"state": dict(state), "force": force})
        if response["status"] != "ACCEPT":
            raise ServerError(f"{run} does not become {state['type']}: {response['details']}")

    def _filtered(self, what: str, wanted: Mapping[str, Any]) -> list[Any]:
        found: list[Any] = []
        while True:
            body = dict(wanted) | {"limit": _LOGS_A_PAGE, "offset": len(found)}
            page = self._call("POST", f"/{what}/filter", body)
            found += page
            if len(page) < _LOGS_A_PAGE:
                return found

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        response = self._client.request(method, path, json=body)
        deadline = time.monotonic() + _BUSY_SECONDS
        while response.status_code == 503 and time.monotonic() < deadline:
            # The database was locked, and nothing was done; Prefect's clients retry this as well.
            time.sleep(0.2)
            response = self._client.request(method, path, json=body)
        if response.is_error:
            raise ServerError(
                f"{method} {response.request.url} -> {response.status_code}: {response.text[:1000]}"
            )
        return response.json() if response.content else None


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def _variable(pid: int, name: str) -> str | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return next((value.partition("=")[2] for value in variables if value.startswith(f"{name}=")), None)
