"""A connection that is changed while triggers wait with it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from noukai_airflow import _connection_changes
from noukai_airflow._connection import ConnectionSettings
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.triggers.noukai import NoukaiJobTrigger
from tests.fuzz.raw_server import RawServer

if TYPE_CHECKING:
    import pytest


def _server(state: str) -> RawServer:
    body = f'{{"status": "{state}"}}'
    response = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    return RawServer(lambda _: [response.encode()])


def test_a_change_is_seen_within_a_minute() -> None:
    """A connection is read often enough, with time to spare for the reading."""
    assert _connection_changes.CHECK_SECONDS + 10 <= 60


def test_a_changed_connection_reaches_waiting_triggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trigger that waits goes on with the new server, without an error of the old one."""
    with _server("running") as old, _server("completed") as new:
        addresses, read = [old.base_url], list[str]()

        async def read_connection(hook: NoukaiHook) -> ConnectionSettings:
            read.append(addresses[-1])
            return ConnectionSettings.of(
                "noukai_default", password="nk_test_key", host=addresses[-1], extra={}
            )

        monkeypatch.setattr(NoukaiHook, "_read_connection", read_connection)
        monkeypatch.setattr(_connection_changes, "CHECK_SECONDS", 0.2)

        async def run() -> None:
            triggers = [NoukaiJobTrigger("job-1", "acme/demo/flow") for _ in range(3)]
            waiting = [asyncio.create_task(anext(aiter(trigger.run()))) for trigger in triggers]
            while len(read) < 3:
                await asyncio.sleep(0.01)
            assert not any(task.done() for task in waiting)
            addresses.append(new.base_url)
            for event in await asyncio.gather(*waiting):
                assert event.payload["reason"] == "finished"

        asyncio.run(run())
