"""An Airflow of larger users: Celery over Redis, two schedulers and triggerers, its state in PostgreSQL."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from devtools.airflow_server import LocalAirflow
from devtools.processes import Component, descendants, title
from tests.deployment.servers import PostgreSQL, Redis

DAGS = Path(__file__).parent / "dags"
_PAGE = 100
_TASKS_OF_A_WORKER = 4

# When a triggerer first fetches a connection, it stops for about seven seconds, or twice that on a busy
# machine; it must not be considered dead then.
SILENCE_SECONDS = 20

# How soon Airflow notices that a process is gone. The default is half a minute to ten minutes.
_SETTINGS = {
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": str(SILENCE_SECONDS),
}


class Deployment(LocalAirflow):
    """A running Airflow with two schedulers, two workers and two triggerers.

    Args:
        home: An empty folder for the configuration and the logs.
        postgresql: Where the state is.
        redis: What the scheduler sends the workers their tasks through.
    """

    def __init__(self, home: Path, postgresql: PostgreSQL, redis: Redis) -> None:
        super().__init__(
            Path(sys.executable).parent,
            home,
            [DAGS],
            database_url=postgresql.url,
            environment={
                "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
                "AIRFLOW__CELERY__BROKER_URL": redis.url,
                "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(_TASKS_OF_A_WORKER),
                **_SETTINGS,
            },
            parallelism=32,
        )
        self.schedulers = [self.scheduler, self._component("scheduler", name="scheduler-2")]
        self.workers = [self._worker("worker-1"), self._worker("worker-2")]
        self.triggerers = [self.triggerer, self._extra_triggerer("triggerer-2")]

    def mapped_tasks(self, dag_id: str, run_id: str, task_id: str) -> list[Mapping[str, Any]]:
        """Return what the API says about each instance of a mapped task, by map index."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/listMapped?order_by=map_index"
        found: list[Mapping[str, Any]] = []
        while True:
            page = self.get(f"{path}&limit={_PAGE}&offset={len(found)}")
            found += page["task_instances"]
            if len(found) >= page["total_entries"]:
                return found

    def live_schedulers(self) -> int:
        """Count the schedulers that Airflow considers alive."""
        found: int = self.get("/jobs?job_type=SchedulerJob&is_alive=true")["total_entries"]
        return found

    @property
    def task_runners(self) -> Sequence[Component]:
        """The workers."""
        return self.workers

    def has_tasks(self, worker: Component) -> bool:
        """Return whether a worker is running a task."""
        return any(title(pid).startswith("airflow worker -- ") for pid in descendants(worker.pid))

    def has_triggers(self, triggerer: Component, port: int) -> bool:
        """Return whether a triggerer is waiting for a job: only then is it connected to a Noukai."""
        processes = map(psutil.Process, descendants(triggerer.pid))
        return any(
            connection.raddr and connection.raddr.port == port
            for process in processes
            for connection in process.net_connections("tcp")
        )

    def worker_of(self, process: int) -> Component:
        """Return the worker that runs a task."""
        (found,) = [worker for worker in self.workers if process in descendants(worker.pid)]
        return found

    def _worker(self, name: str) -> Component:
        pid = ("--pid", str(self.home / f"{name}.pid"))
        arguments = ("worker", "--celery-hostname", name, "--skip-serve-logs", *pid)
        return self._component("celery", *arguments, name=name)
