"""A connection that is changed while triggers wait with it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from noukai_airflow import _connection_changes
from noukai_airflow._connection import ConnectionSettings
from noukai_airflow.hooks import noukai as hooks
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.triggers.noukai import NoukaiJobTrigger
from tests.fuzz.raw_server import RawServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from noukai_core import JobStatus


@pytest.fixture
def servers() -> Iterator[tuple[RawServer, RawServer]]:
    """A server on which every job runs, and one on which every job is completed."""
    with _server("running") as old, _server("completed") as new:
        yield old, new


def _settings(server: RawServer) -> ConnectionSettings:
    return ConnectionSettings.of("noukai_default", password="nk_test_key", host=server.base_url, extra={})


def _server(state: str) -> RawServer:
    body = f'{{"status": "{state}"}}'
    response = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    return RawServer(lambda _: [response.encode()])


def test_a_change_is_seen_within_a_minute() -> None:
    """A connection is read often enough, with time to spare for the reading."""
    assert _connection_changes.CHECK_SECONDS + 10 <= 60


def test_a_changed_connection_reaches_waiting_triggers(
    servers: tuple[RawServer, RawServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger that waits goes on with the new server, without an error of the old one."""
    old, new = servers
    stored, read = [old], list[RawServer]()

    async def read_connection(hook: NoukaiHook) -> ConnectionSettings:
        read.append(stored[-1])
        return _settings(stored[-1])

    monkeypatch.setattr(NoukaiHook, "_read_connection", read_connection)
    monkeypatch.setattr(_connection_changes, "CHECK_SECONDS", 0.2)

    async def run() -> None:
        triggers = [NoukaiJobTrigger("job-1", "acme/demo/flow") for _ in range(3)]
        waiting = [asyncio.create_task(anext(aiter(trigger.run()))) for trigger in triggers]
        while len(read) < 3:
            await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
        stored.append(new)
        for event in await asyncio.gather(*waiting):
            assert event.payload["reason"] == "finished"

    asyncio.run(run())


def test_a_change_while_a_state_is_recorded(
    servers: tuple[RawServer, RawServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger survives a change of its connection at the moment when it writes the job's state."""
    old, new = servers
    stored = [old]

    async def read_connection(hook: NoukaiHook) -> ConnectionSettings:
        return _settings(stored[-1])

    async def push_status(trigger: NoukaiJobTrigger, status: JobStatus) -> None:
        if status.state == "running":
            stored.append(new)
            await asyncio.Event().wait()

    monkeypatch.setattr(NoukaiHook, "_read_connection", read_connection)
    monkeypatch.setattr(NoukaiJobTrigger, "_push_status", push_status)
    monkeypatch.setattr(_connection_changes, "CHECK_SECONDS", 0.2)

    async def run() -> None:
        event = await anext(aiter(NoukaiJobTrigger("job-1", "acme/demo/flow").run()))
        assert (event.payload["reason"], event.payload["state"]) == ("finished", "completed")

    asyncio.run(run())


def test_a_read_that_never_ends(
    servers: tuple[RawServer, RawServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Airflow does not respond to one read of a connection, a later read still shows the change."""
    old, new = servers
    reads = list[int]()

    async def read_connection(hook: NoukaiHook) -> ConnectionSettings:
        reads.append(len(reads))
        if len(reads) == 2:
            await asyncio.Event().wait()
        return _settings(old if len(reads) == 1 else new)

    monkeypatch.setattr(NoukaiHook, "_read_connection", read_connection)
    monkeypatch.setattr(hooks, "_READ_SECONDS", 0.2)
    monkeypatch.setattr(_connection_changes, "CHECK_SECONDS", 0.2)

    async def run() -> None:
        event = await anext(aiter(NoukaiJobTrigger("job-1", "acme/demo/flow").run()))
        assert (event.payload["reason"], event.payload["state"]) == ("finished", "completed")
        assert len(reads) == 3

    asyncio.run(run())
