"""The trigger: what it stores, its events, and when it cancels. With a local Noukai."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from noukai_airflow import _cancelling_trigger, _client_cache, _outcome, _task_states
from noukai_airflow._kill_policy import KillDecision
from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.triggers import noukai as triggers
from noukai_airflow.triggers.noukai import NoukaiJobTrigger, wake_up_delay
from noukai_core.time_limit import time_limit
from tests.fuzz.raw_server import RawServer

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core.emulator import Emulator

FLOW = "acme/demo/flow"


@pytest.fixture
def connected(settings: ConnectionSettings, monkeypatch: pytest.MonkeyPatch) -> ConnectionSettings:
    """Use the connection to the local Noukai instead of Airflow's."""

    async def read_connection(hook: NoukaiHook) -> ConnectionSettings:
        return settings

    monkeypatch.setattr(NoukaiHook, "_read_connection", read_connection)
    return settings


def submit(settings: ConnectionSettings) -> str:
    """Submit a job, and return its id."""
    return _client_cache.shared_client(settings).flow(FLOW).job("Hello").id


def trigger(job_id: str, **arguments: Any) -> NoukaiJobTrigger:
    return NoukaiJobTrigger(job_id, FLOW, poll_interval=0.05, **arguments)


def in_triggerer(trigger: NoukaiJobTrigger) -> NoukaiJobTrigger:
    """Give a trigger the id that it has in a triggerer."""
    setattr(trigger, "trigger_id", 1)  # noqa: B010 - Airflow types it as None
    return trigger


async def event_of(waiting: NoukaiJobTrigger) -> JobEvent:
    """Run a trigger, and return its only event."""
    events = [JobEvent.read(event.payload) async for event in waiting.run()]
    (event,) = events
    assert event is not None
    return event


def test_stored_arguments() -> None:
    """A trigger can be recreated from its stored arguments, which are JSON values without a key."""
    made = NoukaiJobTrigger(
        "job-1",
        FLOW,
        "conn",
        "2026-01-01T00:00:00+00:00",
        1_800_000_000.0,
        2.0,
        True,
        1_700_000_000.0,
        "running",
        True,
    )
    path, arguments = made.serialize()
    module, name = path.rsplit(".", 1)
    again = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))
    assert again.serialize() == (path, arguments)
    assert set(arguments) == {
        "job_id",
        "flow",
        "noukai_conn_id",
        "submitted_at",
        "deadline",
        "poll_interval",
        "cancel_on_kill",
        "deferred_at",
        "logged_state",
        "push_status",
        "follow",
        "logged_steps",
    }


def test_arguments_of_an_older_version() -> None:
    """Only the job and its flow are required, so a trigger stored before an upgrade can be recreated."""
    assert NoukaiJobTrigger(**{"job_id": "job-1", "flow": FLOW}).job_id == "job-1"


@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled"])
async def test_the_end_of_a_job(outcome: str, connected: ConnectionSettings, emulator: Emulator) -> None:
    """Every end of a job has the same reason; the event carries its state, but not its result."""
    emulator.control.script("flow", outcome=outcome, after_seconds=0.1, result_bytes=100_000)
    job_id = submit(connected)
    event = await event_of(trigger(job_id))
    assert (event.job_id, event.reason, event.state) == (job_id, Reason.FINISHED, outcome)


async def test_the_status_is_kept_current(
    connected: ConnectionSettings,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each change is written to the XCom `job_status`, but not the state that the task has logged already."""
    caplog.set_level(logging.INFO)
    pushed: list[Any] = []

    async def push_status(_: object, key: str, summary: dict[str, Any]) -> None:
        pushed.append(summary)

    monkeypatch.setattr(_task_states, "push_status", push_status)
    emulator.control.script("flow", outcome="never")
    job_id = submit(connected)
    monkeypatch.setattr(_outcome, "_PROGRESS_SECONDS", 0.0)
    waiting = trigger(job_id, push_status=True, logged_state="pending")
    monkeypatch.setattr(waiting, "task_instance", SimpleNamespace(task_id="job"))
    events = asyncio.create_task(event_of(waiting))
    while not pushed:
        await asyncio.sleep(0.01)
    emulator.control.progress(job_id, {"step": 4, "of": 10})
    while len(pushed) < 2:
        await asyncio.sleep(0.01)
    emulator.control.finish(job_id)
    await events
    assert [(summary["state"], summary.get("progress")) for summary in pushed] == [
        ("running", None),
        ("running", "40 % (4 of 10)"),
    ]
    lines = [record.getMessage() for record in caplog.records if f"job {job_id} of" in record.getMessage()]
    assert [line.split(f"{FLOW}: ")[1] for line in lines] == [
        "submitted",
        "pending → running",
        "progress 40 % (4 of 10)",
        "running → completed",
    ]


async def test_a_status_that_cannot_be_written(
    connected: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose status Airflow does not store is waited for all the same."""

    async def push_status(_: object, key: str, summary: dict[str, Any]) -> None:
        raise RuntimeError("the database is locked")

    monkeypatch.setattr(_task_states, "push_status", push_status)
    emulator.control.script("flow", after_seconds=0.5)
    waiting = trigger(submit(connected), push_status=True)
    monkeypatch.setattr(waiting, "task_instance", SimpleNamespace(task_id="job"))
    assert (await event_of(waiting)).state == "completed"


async def test_a_task_is_not_resumed_too_early(
    connected: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a job ends soon after the deferral, its task is resumed only when Airflow is ready for it."""
    emulator.control.script("flow", after_seconds=0)
    job = _client_cache.shared_client(connected).flow(FLOW).attach(submit(connected))
    monkeypatch.setattr(triggers, "wake_up_delay", lambda late: 0.5)
    waiting = NoukaiJobTrigger.for_job(
        job, noukai_conn_id="noukai_default", deadline=None, poll_interval=0.05
    )
    started = time.time()
    assert (await event_of(waiting)).state == "completed"
    assert time.time() >= started + 0.5


@pytest.mark.parametrize(
    ("deferred_ago", "late"), [(2.0, 2.0), (-3600.0, 0.0)], ids=["late", "the worker's clock is ahead"]
)
async def test_how_late_the_trigger_started(
    deferred_ago: float,
    late: float,
    connected: ConnectionSettings,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pause depends on the time from the deferral to the start of the trigger, never a negative one."""
    emulator.control.script("flow", after_seconds=0)
    seen: list[float] = []

    def delay(late: float) -> float:
        seen.append(late)
        return 0.0

    monkeypatch.setattr(triggers, "wake_up_delay", delay)
    assert (await event_of(trigger(submit(connected), deferred_at=time.time() - deferred_ago))).state
    assert seen[0] >= late


@pytest.mark.parametrize(
    ("late", "seconds"), [(0, 15), (1, 15), (4, 17), (5, 20), (26, 35), (60, 35), (61, 15), (86400, 15)]
)
def test_the_earliest_resumption(late: float, seconds: float) -> None:
    """The pause grows with how late the trigger started, within bounds, unless the triggerer was down."""
    assert wake_up_delay(late, resumes_safely=False) == seconds


def test_a_task_is_resumed_at_once() -> None:
    """Since Airflow 3.4 the scheduler does not mistake the end of the deferring process: no pause."""
    assert wake_up_delay(2.0, resumes_safely=True) == 0


async def test_the_deadline(connected: ConnectionSettings, emulator: Emulator) -> None:
    """At the deadline the trigger ends, and does not cancel the job."""
    emulator.control.script("flow", outcome="never")
    job_id = submit(connected)
    event = await event_of(trigger(job_id, deadline=time.time() + 0.3))
    assert (event.reason, event.job_id) == (Reason.TIMED_OUT, job_id)
    assert emulator.control.counts(job_id).get("cancel", 0) == 0


async def test_a_deadline_that_has_passed(connected: ConnectionSettings, emulator: Emulator) -> None:
    """A trigger that starts after its deadline ends at once."""
    emulator.control.script("flow", outcome="never")
    event = await event_of(trigger(submit(connected), deadline=time.time() - 60))
    assert event.reason is Reason.TIMED_OUT


async def test_an_unknown_job(connected: ConnectionSettings) -> None:
    """The event says that the server does not know the job."""
    assert (await event_of(trigger("job-gone"))).reason is Reason.NOT_FOUND


async def test_a_job_that_is_not_visible_yet(connected: ConnectionSettings, emulator: Emulator) -> None:
    """Shortly after the submission, the trigger waits for the server to know the job."""
    emulator.control.script("flow", visible_after_seconds=0.5, after_seconds=0.1)
    job_id = submit(connected)
    waiting = trigger(job_id, submitted_at=datetime.now(UTC).isoformat())
    assert (await event_of(waiting)).state == "completed"


async def test_a_permanent_error(connected: ConnectionSettings, emulator: Emulator) -> None:
    """The event says that the server rejected the poll permanently."""
    job_id = submit(connected)
    emulator.control.fault("status", on="poll", times=None, status=403)
    assert (await event_of(trigger(job_id))).reason is Reason.PERMANENT_ERROR


async def test_a_response_that_is_too_large(
    settings: ConnectionSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the part of a response that a triggerer reads does not tell the state, the event says so."""

    async def read_connection(hook: NoukaiHook) -> ConnectionSettings:
        return replace(settings, base_url=server.base_url)

    monkeypatch.setattr(NoukaiHook, "_read_connection", read_connection)
    body = json.dumps({"result": "x" * (settings.max_poll_bytes + 1), "status": "completed"})
    response = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    with RawServer(lambda _: [response]) as server:
        event = await event_of(trigger("job-1"))
    assert (event.reason, event.state) == (Reason.RESPONSE_TOO_LARGE, None)


async def test_transient_errors_within_the_retry_window(
    connected: ConnectionSettings, emulator: Emulator
) -> None:
    """Transient errors within the retry window cause no event."""
    job_id = submit(connected)
    emulator.control.fault("status", on="poll", times=2, status=503)
    assert (await event_of(trigger(job_id))).state == "completed"


async def test_transient_errors_beyond_the_retry_window(
    connected: ConnectionSettings, emulator: Emulator
) -> None:
    """Transient errors that outlast the retry window are an event; nothing is raised."""
    job_id = submit(connected)
    emulator.control.fault("status", on="poll", times=None, status=500)
    assert (await event_of(trigger(job_id))).reason is Reason.TRANSIENT_ERROR


async def test_a_connection_that_cannot_be_read_for_a_while(
    connected: ConnectionSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the secrets backend in the triggerer passes, and the task learns nothing of it."""
    read_connection, reads = NoukaiHook._read_connection, list[NoukaiHook]()

    async def read(hook: NoukaiHook) -> ConnectionSettings:
        reads.append(hook)
        if len(reads) < 3:
            raise RuntimeError("the secrets backend is down")
        return await read_connection(hook)

    monkeypatch.setattr(NoukaiHook, "_read_connection", read)
    monkeypatch.setattr(triggers, "_CONNECTION_PAUSE", 0.01)
    assert (await event_of(in_triggerer(trigger(submit(connected))))).state == "completed"


async def test_a_connection_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A connection that stays unreadable is named, and its event lets the task defer again."""

    async def fail(hook: NoukaiHook) -> ConnectionSettings:
        raise RuntimeError("the secrets backend is down")

    monkeypatch.setattr(NoukaiHook, "_read_connection", fail)
    monkeypatch.setattr(triggers, "_CONNECTION_SECONDS", 0.0)
    assert (await event_of(in_triggerer(trigger("job-1")))).reason is Reason.TRANSIENT_ERROR
    assert "connection not read: 'noukai_default': the secrets backend is down" in capsys.readouterr().out


async def test_a_connection_that_dags_test_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a triggerer, as in `airflow dags test`, a connection that cannot be read is not waited for."""
    reads = list[NoukaiHook]()

    async def fail(hook: NoukaiHook) -> ConnectionSettings:
        reads.append(hook)
        raise RuntimeError("stored connections cannot be read here")

    monkeypatch.setattr(NoukaiHook, "_read_connection", fail)
    assert (await event_of(trigger("job-1"))).reason is Reason.UNEXPECTED_ERROR
    assert len(reads) == 1


async def test_an_unexpected_error(connected: ConnectionSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even an unexpected error ends in an event, and not in an exception."""

    async def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(NoukaiJobTrigger, "_push_status", fail)
    assert (await event_of(trigger(submit(connected)))).reason is Reason.UNEXPECTED_ERROR


@pytest.mark.parametrize("cancels", [True, False])
async def test_a_person_who_interrupts_a_trigger_in_the_foreground(
    cancels: bool, connected: ConnectionSettings, emulator: Emulator
) -> None:
    """Ctrl-C in `airflow dags test`, which runs the trigger itself, cancels the job, unless it may not."""
    emulator.control.script("flow", outcome="never")
    job_id = submit(connected)
    waiting = asyncio.create_task(event_of(trigger(job_id, cancel_on_kill=cancels)))
    await asyncio.to_thread(emulator.control.wait_for, "poll", 1, job_id=job_id)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert emulator.control.counts(job_id)["cancel"] == cancels


async def test_a_trigger_that_moves(connected: ConnectionSettings, emulator: Emulator) -> None:
    """A triggerer that stops interrupts its triggers, which says nothing about their jobs."""
    emulator.control.script("flow", outcome="never")
    job_id = submit(connected)
    waiting = asyncio.create_task(event_of(in_triggerer(trigger(job_id, cancel_on_kill=True))))
    await asyncio.to_thread(emulator.control.wait_for, "poll", 1, job_id=job_id)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert emulator.control.counts(job_id)["cancel"] == 0


async def test_triggers_share_a_client(connected: ConnectionSettings, emulator: Emulator) -> None:
    """All triggers of one loop and connection use one client, which the last of them closes."""
    emulator.control.script("flow", outcome="never")
    waits = [asyncio.create_task(event_of(trigger(submit(connected)))) for _ in range(5)]
    leases = _client_cache._leases.setdefault(asyncio.get_running_loop(), {})
    while connected not in leases or leases[connected].users < 5:
        await asyncio.sleep(0.01)
    client = await leases[connected].client
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    assert connected not in leases
    from noukai_core import NoukaiError

    with pytest.raises((NoukaiError, RuntimeError)):
        await client.verify_key()


async def test_the_hook_lends_the_triggers_client(connected: ConnectionSettings) -> None:
    """Custom tasks and triggers get the same client from the hook."""
    async with NoukaiHook().async_client() as client, NoukaiHook().async_client() as again:
        assert client is again
        assert _client_cache._leases[asyncio.get_running_loop()][connected].users == 2
        await client.verify_key()
    assert connected not in _client_cache._leases[asyncio.get_running_loop()]


async def test_no_client_is_made_on_the_event_loop(
    connected: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first client of a process reads all certificates, which must not block other triggers."""
    import noukai_core

    makers: list[threading.Thread] = []

    class Client(noukai_core.AsyncNoukai):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            makers.append(threading.current_thread())
            super().__init__(*arguments, **options)

    monkeypatch.setattr(noukai_core, "AsyncNoukai", Client)
    emulator.control.script("flow", after_seconds=0)
    waiting = trigger(submit(connected), cancel_on_kill=True)
    await event_of(waiting)
    await waiting.on_kill()
    assert len(makers) == 2
    assert threading.current_thread() not in makers


async def test_a_client_that_cannot_be_made(
    settings: ConnectionSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection without a valid client ends in a permanent error, and leaves no client behind."""

    async def read_connection(hook: NoukaiHook) -> ConnectionSettings:
        return replace(settings, base_url="not a url")

    monkeypatch.setattr(NoukaiHook, "_read_connection", read_connection)
    assert (await event_of(trigger("job-1"))).reason is Reason.PERMANENT_ERROR
    assert not _client_cache._leases[asyncio.get_running_loop()]


async def test_a_key_that_was_replaced(
    settings: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger whose key was revoked continues with the current key of the connection."""
    keys = iter("abc")

    async def read_connection(hook: NoukaiHook) -> ConnectionSettings:
        return replace(settings, api_key=f"nk_test_{next(keys)}")

    monkeypatch.setattr(NoukaiHook, "_read_connection", read_connection)
    emulator.control.script("flow", after_seconds=0.5)
    waiting = [trigger(submit(settings)) for _ in range(3)]
    emulator.control.fault("status", on="poll", times=3, status=401)
    assert [event.state for event in await asyncio.gather(*map(event_of, waiting))] == ["completed"] * 3
    assert next(keys) == "c", "the connection was read once at first, and once more for all triggers together"


async def kill(waiting: NoukaiJobTrigger) -> None:
    """Kill a trigger as Airflow 3.3.2 does: `on_kill`, interrupted repeatedly, and `cleanup`."""
    ending = asyncio.create_task(waiting.on_kill())
    await asyncio.sleep(0.2)
    ending.cancel("user-action")
    await asyncio.gather(ending, return_exceptions=True)
    cleaning = asyncio.create_task(waiting.cleanup())
    await asyncio.sleep(0.2)
    cleaning.cancel("user-action")
    await cleaning


async def test_a_kill_that_is_interrupted(connected: ConnectionSettings, emulator: Emulator) -> None:
    """A slow cancel request completes, although Airflow interrupts it."""
    emulator.control.script("flow", outcome="never", cancel_seconds=1)
    job_id = submit(connected)
    await kill(trigger(job_id, cancel_on_kill=True))
    (job,) = emulator.control.jobs()
    assert (job["state"], emulator.control.counts(job_id)["cancel"]) == ("cancelled", 1)


async def test_a_kill_that_takes_too_long(
    connected: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel request without a response is abandoned after a while, so that no trigger stays forever."""
    emulator.control.script("flow", outcome="never", cancel_seconds=3600)

    @asynccontextmanager
    async def until_it_is_sent(seconds: float) -> AsyncIterator[None]:
        async with time_limit(None) as limit:

            async def end() -> None:
                await asyncio.to_thread(emulator.control.wait_for, "cancel")
                limit.reschedule(asyncio.get_running_loop().time())

            ending = asyncio.create_task(end())
            yield
            await ending

    monkeypatch.setattr(_cancelling_trigger, "time_limit", until_it_is_sent)
    waiting = trigger(submit(connected), cancel_on_kill=True)
    await waiting.on_kill()
    await waiting.cleanup()
    assert emulator.control.counts(waiting.job_id)["cancel"] == 1


async def test_a_shutdown_is_not_delayed(connected: ConnectionSettings, emulator: Emulator) -> None:
    """A triggerer that stops does not wait for a cancel request."""
    emulator.control.script("flow", outcome="never", cancel_seconds=5)
    waiting = trigger(submit(connected), cancel_on_kill=True)
    ending = asyncio.create_task(waiting.on_kill())
    await asyncio.sleep(0.1)
    ending.cancel("user-action")
    await asyncio.gather(ending, return_exceptions=True)
    cleaning = asyncio.create_task(waiting.cleanup())
    await asyncio.sleep(0.1)
    cleaning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(cleaning, 1)
    if waiting._kill is not None:
        waiting._kill.cancel()


@pytest.mark.parametrize(
    ("arguments", "decision"),
    [({"cancel_on_kill": False}, KillDecision.CANCEL), ({"cancel_on_kill": True}, KillDecision.KEEP)],
    ids=["cancel_on_kill off", "still waited for"],
)
async def test_a_kill_that_leaves_the_job_running(
    arguments: dict[str, bool],
    decision: KillDecision,
    connected: ConnectionSettings,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With `cancel_on_kill` off, or if the task still waits for the job, nothing is cancelled."""

    async def decide(_: NoukaiJobTrigger) -> KillDecision:
        return decision

    monkeypatch.setattr(NoukaiJobTrigger, "_decide", decide)
    job_id = submit(connected)
    await trigger(job_id, **arguments).on_kill()
    assert emulator.control.counts(job_id).get("cancel", 0) == 0


def decide_quickly(monkeypatch: pytest.MonkeyPatch, *, undecided: bool) -> None:
    """Shorten the pause between two decisions, and how long to wait for one only if none ever comes."""
    monkeypatch.setattr(_cancelling_trigger, "_DECISION_PAUSE", 0.01)
    if undecided:
        monkeypatch.setattr(_cancelling_trigger, "_DECISION_SECONDS", 0.2)


@pytest.mark.parametrize(
    ("then", "cancels"),
    [(("running", True), 0), (("running", False), 1), (("queued", True), 0)],
    ids=["resumed by another triggerer", "cleared by a user", "no worker for a long time"],
)
async def test_a_kill_while_the_task_is_on_its_way_to_a_worker(
    then: tuple[str, bool],
    cancels: int,
    connected: ConnectionSettings,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before Airflow 3.4, nothing is cancelled until it is known who resumed the task."""
    monkeypatch.setattr(_cancelling_trigger, "ON_KILL_MEANS_USER", False)
    emulator.control.script("flow", outcome="never")
    waiting = trigger(submit(connected), cancel_on_kill=True)
    monkeypatch.setattr(waiting, "task_instance", SimpleNamespace(task_id="job"))
    seen = iter([("scheduled", True), ("queued", True)])
    now = then

    async def state_of_task(_: object) -> str:
        nonlocal now
        now = next(seen, then)
        return now[0]

    async def published_by_task(_: object, key: str) -> str | None:
        return waiting.job_id if now[1] else None

    monkeypatch.setattr(_task_states, "state_of_task", state_of_task)
    monkeypatch.setattr(_task_states, "published_by_task", published_by_task)
    decide_quickly(monkeypatch, undecided=then[0] == "queued")
    await waiting.on_kill()
    assert emulator.control.counts(waiting.job_id).get("cancel", 0) == cancels


@pytest.mark.parametrize(
    ("then", "cancels"),
    [(("deferred", "mine"), 0), (("running", "another"), 1), (("deferred", None), 0), (("queued", None), 1)],
    ids=["attached", "not attached", "without XComs", "never runs again"],
)
async def test_a_kill_after_a_clear(
    then: tuple[str, str | None],
    cancels: int,
    connected: ConnectionSettings,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Since Airflow 3.4: the job of a cleared task is cancelled, unless the new try attaches to it."""
    monkeypatch.setattr(_cancelling_trigger, "ON_KILL_MEANS_USER", True)
    emulator.control.script("flow", outcome="never")
    waiting = trigger(submit(connected), cancel_on_kill=True)
    monkeypatch.setattr(waiting, "task_instance", SimpleNamespace(task_id="job"))
    seen = iter([(None, None), ("scheduled", None), ("running", None)])
    now: tuple[str | None, str | None] = then

    async def state_of_task(_: object) -> str | None:
        nonlocal now
        now = next(seen, then)
        return now[0]

    async def published_by_task(_: object, key: str) -> str | None:
        return waiting.job_id if now[1] == "mine" else now[1]

    monkeypatch.setattr(_task_states, "state_of_task", state_of_task)
    monkeypatch.setattr(_task_states, "published_by_task", published_by_task)
    decide_quickly(monkeypatch, undecided=then[0] == "queued")
    await waiting.on_kill()
    assert emulator.control.counts(waiting.job_id).get("cancel", 0) == cancels


@pytest.mark.parametrize(
    ("silent", "means_user", "cancels"),
    [(2, False, 1), (1000, False, 0), (2, True, 1), (1000, True, 1)],
    ids=["for a moment", "for a long time", "for a moment, 3.4", "for a long time, 3.4"],
)
async def test_a_kill_while_the_tasks_state_is_unavailable(
    silent: int,
    means_user: bool,
    cancels: int,
    connected: ConnectionSettings,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The request is repeated; if it keeps failing, the job is kept where the kill may be a mistake."""
    monkeypatch.setattr(_cancelling_trigger, "ON_KILL_MEANS_USER", means_user)
    emulator.control.script("flow", outcome="never")
    waiting = trigger(submit(connected), cancel_on_kill=True)
    monkeypatch.setattr(waiting, "task_instance", SimpleNamespace(task_id="job"))
    left = silent

    async def state_of_task(_: object) -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            raise RuntimeError("the database is locked")
        return "failed"

    async def published_by_task(_: object, key: str) -> str:
        return waiting.job_id

    monkeypatch.setattr(_task_states, "state_of_task", state_of_task)
    monkeypatch.setattr(_task_states, "published_by_task", published_by_task)
    decide_quickly(monkeypatch, undecided=silent == 1000)
    await waiting.on_kill()
    assert emulator.control.counts(waiting.job_id).get("cancel", 0) == cancels


async def test_cleanup_alone_cancels_nothing(connected: ConnectionSettings, emulator: Emulator) -> None:
    """When a triggerer stops, it only calls `cleanup`, and the job is left running."""
    job_id = submit(connected)
    await trigger(job_id, cancel_on_kill=True).cleanup()
    assert emulator.control.counts(job_id).get("cancel", 0) == 0
