"""The provider without a running Airflow: with its own configuration and fake tasks."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

# Airflow reads its configuration, and writes it, when it is first imported.
_HOME = tempfile.mkdtemp(prefix="noukai-airflow-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ["AIRFLOW_HOME"] = _HOME
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{_HOME}/airflow.db"

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core.emulator import Emulator

KEY = "nk_test_unitairf_0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def nothing_returned() -> None:
    """A job that one test has returned is a new one to the next, which may name it alike."""
    from noukai_airflow import _submit

    _submit._returned.clear()


class MemoryStore:
    """A task state store in memory, which records what is written."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.writes: list[Any] = []

    def get(self, key: str) -> Any:
        return self.kept.get(key)

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self.kept[key] = value
        self.writes.append(value)

    def delete(self, key: str) -> None:
        self.kept.pop(key, None)


@dataclass
class FakeTask:
    """The parts of a task instance that the provider uses."""

    try_number: int = 1
    max_tries: int = 0
    dag_id: str = "dag"
    run_id: str = field(default_factory=lambda: uuid4().hex)
    task_id: str = "task"
    map_index: int = -1
    xcoms: dict[str, Any] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> UUID:
        """The id of the try; that of a later one is greater."""
        return UUID(int=self.try_number)

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int, run_id: str | None = None) -> Any:
        return self.xcoms.get(key) if (task_ids, map_indexes) == (self.task_id, self.map_index) else None

    def get_task_states(self, **_: Any) -> dict[str, Any]:
        return self.states


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def settings(emulator: Emulator) -> ConnectionSettings:
    """A connection to the local Noukai."""
    from noukai_airflow._connection import ConnectionSettings

    return ConnectionSettings.of(
        "noukai_default",
        password=KEY,
        host=emulator.base_url,
        extra={"recovery_timeout": 2, "not_found_grace": 2, "retry_timeout": 2},
    )


@pytest.fixture
def connected(settings: ConnectionSettings, monkeypatch: pytest.MonkeyPatch) -> ConnectionSettings:
    """Use the connection to the local Noukai instead of Airflow's."""
    from noukai_airflow.hooks.noukai import NoukaiHook

    monkeypatch.setattr(NoukaiHook, "settings", settings)
    return settings


@pytest.fixture
def connected_by_name(connected: ConnectionSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `noukai_default` is a connection."""
    from noukai_airflow.hooks.noukai import NoukaiHook

    connections = {"noukai_default": connected}
    by_name = property(lambda hook: connections[hook.noukai_conn_id])
    monkeypatch.setattr(NoukaiHook, "settings", by_name)


@pytest.fixture
def context(store: MemoryStore) -> Any:
    """The context that Airflow passes to a task."""
    return {"ti": FakeTask(), "task_state_store": store}
