"""The trigger of an `AssetWatcher`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import pytest

from noukai_airflow.triggers import runs
from noukai_airflow.triggers.runs import NoukaiRunTrigger
from noukai_core import Noukai, RunsCursor
from noukai_core.emulator import Emulator

KEY = "nk_test_00000000_0123456789abcdef"


class Store:
    """The store of one asset, as far as the trigger uses it."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.stored = asyncio.Event()

    async def aget(self, key: str, default: Any = None) -> Any:
        return json.loads(self.values[key]) if key in self.values else default

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = json.dumps(value)
        self.stored.set()


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator({"*": {"outcome": "never"}}) as emulator:
        yield emulator


@pytest.fixture
def slug(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> str:
    """A flow for this test alone."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_NOUKAI_DEFAULT",
        json.dumps({"conn_type": "noukai", "password": KEY, "host": emulator.base_url}),
    )
    monkeypatch.setattr(runs, "_EVENT_SECONDS", 0.01)
    return f"flow-{uuid4().hex[:8]}"


def submit(emulator: Emulator, slug: str) -> tuple[str, str]:
    """Return a new job, and the id of its flow."""
    with Noukai(KEY, base_url=emulator.base_url) as client:
        job = client.flow(f"acme/tests/{slug}").job("hello")
        assert job.accepted is not None
        assert job.accepted.flow_id is not None
        return job.id, job.accepted.flow_id


async def next_payload(events: AsyncIterator[Any]) -> dict[str, Any]:
    payload: dict[str, Any] = (await anext(events)).payload
    return payload


def watching(flow_id: str, store: Store | None, **options: Any) -> NoukaiRunTrigger:
    trigger = NoukaiRunTrigger(flow_id, poll_interval=0.02, **options)
    trigger.asset_state_store = store  # type: ignore[assignment]
    return trigger


async def test_a_run_that_ends(emulator: Emulator, slug: str) -> None:
    """An event is fired when a run ends, with what the server says of the run."""
    job_id, flow_id = submit(emulator, slug)
    events, store = watching(flow_id, store := Store()).run(), store
    waiting = asyncio.create_task(next_payload(events))
    await store.stored.wait()
    emulator.control.finish(job_id, "failed", error="no luck")
    payload = await waiting
    assert (payload["run_id"], payload["flow_id"], payload["state"]) == (job_id, flow_id, "failed")
    assert {type(value) for value in payload.values()} == {str}
    await events.aclose()


async def test_a_restart(emulator: Emulator, slug: str) -> None:
    """What ended while no trigger ran comes after the restart, and what came before does not come again."""
    first, flow_id = submit(emulator, slug)
    store = Store()
    events = watching(flow_id, store).run()
    waiting = asyncio.create_task(next_payload(events))
    await store.stored.wait()
    emulator.control.finish(first)
    assert (await waiting)["run_id"] == first
    store.stored.clear()
    waiting = asyncio.create_task(next_payload(events))
    await store.stored.wait()
    waiting.cancel()
    await asyncio.wait({waiting})
    second, _ = submit(emulator, slug)
    emulator.control.finish(second)
    events = watching(flow_id, store).run()
    assert (await next_payload(events))["run_id"] == second
    await events.aclose()


async def test_an_event_is_not_lost_in_a_crash(emulator: Emulator, slug: str) -> None:
    """The cursor is stored after the event was handed on: until then, it comes again after a restart."""
    job_id, flow_id = submit(emulator, slug)
    store = Store()
    events = watching(flow_id, store).run()
    waiting = asyncio.create_task(next_payload(events))
    await store.stored.wait()
    emulator.control.finish(job_id)
    assert (await waiting)["run_id"] == job_id
    await events.aclose()  # the crash
    events = watching(flow_id, store).run()
    assert (await next_payload(events))["run_id"] == job_id
    await events.aclose()


async def test_watchers_of_one_asset(emulator: Emulator, slug: str) -> None:
    """A run that one watcher of an asset has read after a restart of the others still fires their events."""
    job_id, flow_id = submit(emulator, slug)
    store = Store()
    for states in (["failed"], ["completed"]):
        store.stored.clear()
        events = watching(flow_id, store, states=states).run()
        waiting = asyncio.create_task(next_payload(events))
        await store.stored.wait()
        if states == ["completed"]:
            store.stored.clear()
            emulator.control.finish(job_id, "failed")
            await store.stored.wait()  # with the run that it does not fire for
        waiting.cancel()
        await asyncio.wait({waiting})
    events = watching(flow_id, store, states=["failed"]).run()
    assert (await next_payload(events))["run_id"] == job_id
    await events.aclose()


async def test_the_cursor_that_watchers_shared(emulator: Emulator, slug: str) -> None:
    """Each watcher goes on from the cursor that those of its asset shared in an earlier version, once."""
    job_id, flow_id = submit(emulator, slug)
    store = Store()
    waiting = asyncio.create_task(next_payload(watching(flow_id, store).run()))
    await store.stored.wait()
    waiting.cancel()
    await asyncio.wait({waiting})
    (shared,) = store.values.values()
    store.values = {f"noukai-runs-{flow_id}": shared}
    emulator.control.finish(job_id, "failed")
    for states in (["failed"], ["completed", "failed"]):
        events = watching(flow_id, store, states=states).run()
        assert (await next_payload(events))["run_id"] == job_id
        store.stored.clear()
        waiting = asyncio.create_task(next_payload(events))
        await store.stored.wait()
        waiting.cancel()
        await asyncio.wait({waiting})
    assert store.values[f"noukai-runs-{flow_id}"] == shared
    second, _ = submit(emulator, slug)
    emulator.control.finish(second, "failed")
    events = watching(flow_id, store, states=["failed"]).run()
    assert (await next_payload(events))["run_id"] == second
    await events.aclose()


def test_what_tells_watchers_apart() -> None:
    """The key of a cursor depends on the flow, the connection and the states, in whatever order they come."""
    key = NoukaiRunTrigger("fl-1", states=["failed", "completed"])._key
    assert NoukaiRunTrigger("fl-1", states={"completed", "failed"}, poll_interval=5)._key == key
    others = [
        NoukaiRunTrigger("fl-2", states=["failed", "completed"]),
        NoukaiRunTrigger("fl-1", states=["failed"]),
        NoukaiRunTrigger("fl-1", "another", states=["failed", "completed"]),
    ]
    assert len({key, *(other._key for other in others)}) == 4


async def test_only_some_ends(emulator: Emulator, slug: str) -> None:
    """A trigger fires only for the states that it was made for."""
    store = Store()
    first, flow_id = submit(emulator, slug)
    second, _ = submit(emulator, slug)
    events = watching(flow_id, store, states=["failed"]).run()
    waiting = asyncio.create_task(next_payload(events))
    await store.stored.wait()
    emulator.control.finish(first, "completed")
    emulator.control.finish(second, "failed")
    assert (await waiting)["run_id"] == second
    await events.aclose()


async def test_errors_do_not_end_it(
    emulator: Emulator, slug: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a rejected key, it reads again; one line says so, and another that it works again."""
    job_id, flow_id = submit(emulator, slug)
    store = Store()
    store.values[f"noukai-runs-{flow_id}"] = json.dumps(RunsCursor({}, (job_id,)).to_json())
    emulator.control.fault("status", on="runs", times=3, status=401)
    emulator.control.finish(job_id)
    events = watching(flow_id, store).run()
    assert (await next_payload(events))["run_id"] == job_id
    await events.aclose()
    logged = capsys.readouterr().out
    assert logged.count("not read (retrying)") == 1
    assert logged.count("read again after 3 failures") == 1


async def test_an_airflow_without_a_store(
    emulator: Emulator, slug: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before Airflow 3.3, the trigger works until the triggerer is restarted, and says so."""
    job_id, flow_id = submit(emulator, slug)
    events = watching(flow_id, None).run()
    reads = emulator.control.counts().get("runs", 0)
    waiting = asyncio.create_task(next_payload(events))
    # The second read begins after the first one has ended.
    await asyncio.to_thread(emulator.control.wait_for, "runs", reads + 2)
    emulator.control.finish(job_id)
    assert (await waiting)["run_id"] == job_id
    await events.aclose()
    assert "cursor not stored" in capsys.readouterr().out


def test_it_is_stored_and_recreated() -> None:
    """Airflow stores the arguments as plain values, and equal triggers have equal ones."""
    trigger = NoukaiRunTrigger("fl-1", states={"failed", "completed"}, poll_interval=5)
    path, arguments = trigger.serialize()
    assert path == f"{NoukaiRunTrigger.__module__}.{NoukaiRunTrigger.__qualname__}"
    assert json.loads(json.dumps(arguments)) == arguments
    assert NoukaiRunTrigger(**arguments).serialize() == (path, arguments)


@pytest.mark.parametrize("flow_id", ["acme/tests/flow", "", None])
def test_what_is_no_id_of_a_flow(flow_id: Any) -> None:
    """A path or nothing in place of the flow's id is refused when the DAG is parsed."""
    with pytest.raises(ValueError, match="flow_id is"):
        NoukaiRunTrigger(flow_id)


@pytest.mark.parametrize("states", [[], "failed", ["running"]])
def test_states_that_cannot_be(states: Any) -> None:
    """A state in which no run ends is refused when the DAG is parsed."""
    with pytest.raises(ValueError, match="states is"):
        NoukaiRunTrigger("fl-1", states=states)
