"""What a task logs of its job while the job runs: its state, its steps as well, or nothing."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from devtools.processes import LONGEST_WAIT, wait_until
from noukai_airflow import _client_cache, _steps
from noukai_airflow._trigger_event import JobEvent
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_airflow.sensors.noukai import NoukaiJobSensor
from noukai_airflow.triggers.noukai import NoukaiJobTrigger
from noukai_core import following
from tests.airflow.conftest import FakeTask

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core.emulator import Emulator

FLOW = "acme/demo/flow"
STEPS = [{"stepId": "draft"}, {"stepId": "check"}]
SHOWN = ["step draft started", "step draft completed", "step check started", "step check completed"]
FAULTS: list[dict[str, Any]] = [
    {"kind": "stream", "then": "end"},
    {"kind": "stream", "then": "stall"},
    {"kind": "stream", "then": "repeat"},
    {"kind": "stream", "then": "huge"},
    {"kind": "status", "on": "stream", "status": 403},
    {"kind": "not_found", "on": "stream", "times": None},
    {"kind": "drop_before", "on": "stream", "times": None},
]


@pytest.fixture
def said(
    settings: ConnectionSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Any:
    """Use the connection to the local Noukai, and return what is logged about its jobs."""

    async def read_connection(hook: NoukaiHook) -> ConnectionSettings:
        return settings

    monkeypatch.setattr(NoukaiHook, "_read_connection", read_connection)
    monkeypatch.setattr(NoukaiHook, "settings", settings)
    caplog.set_level(logging.INFO)

    def lines(part: str = "") -> list[str]:
        about = [record.getMessage().partition(f" of {FLOW}: ")[2] for record in caplog.records]
        return [line.partition(" after ")[0] for line in about if line.startswith(part or ("",)) and line]

    return lines


@pytest.fixture
def all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the last steps of a job take as long as the machine does."""
    monkeypatch.setattr(following, "LAST_STEPS_SECONDS", LONGEST_WAIT)
    monkeypatch.setattr(_steps, "_STOP_SECONDS", LONGEST_WAIT)


def operator(**arguments: Any) -> NoukaiRunJobOperator:
    return NoukaiRunJobOperator(task_id="task", flow=FLOW, message="Hello", poll_interval=0.05, **arguments)


def run_on_worker(emulator: Emulator, **arguments: Any) -> Any:
    """Run a task that waits on its worker."""
    return operator(**arguments).execute({"ti": FakeTask()})


async def run_trigger(job_id: str, **arguments: Any) -> JobEvent:
    """Run a trigger, and return its event."""
    trigger = NoukaiJobTrigger(job_id, FLOW, poll_interval=0.05, **arguments)
    (event,) = [JobEvent.read(event.payload) async for event in trigger.run()]
    assert event is not None
    return event


@pytest.mark.usefixtures("all_steps")
def test_steps_on_a_worker(said: Any, emulator: Emulator) -> None:
    """A task that waits on its worker logs each step once, beside the states."""
    emulator.control.script("flow", steps=STEPS, after_seconds=0.5, result=7)
    assert run_on_worker(emulator, follow="steps") == 7
    assert said("step ") == SHOWN
    assert said("running")[-1:] == ["running → completed"]  # the first poll may see a job that is running


@pytest.mark.usefixtures("all_steps")
async def test_steps_in_a_triggerer(said: Any, settings: ConnectionSettings, emulator: Emulator) -> None:
    """A trigger logs each step once, except those that the task has logged, and its event counts them."""
    emulator.control.script("flow", steps=STEPS, after_seconds=0.5)
    job_id = _client_cache.shared_client(settings).flow(FLOW).job("Hello").id
    event = await run_trigger(job_id, follow="steps", logged_steps=1)
    assert (event.state, event.logged_steps) == ("completed", 4)
    assert said("step ") == SHOWN[1:]


def test_a_deferral_counts_the_steps(said: Any, emulator: Emulator) -> None:
    """A task that defers passes on how many steps it has logged, so that the trigger does not repeat them."""
    emulator.control.script("flow", steps=STEPS, after_seconds=10)
    with pytest.raises(TaskDeferred) as deferred:
        run_on_worker(emulator, follow="steps", deferrable=True, inline_wait=3)
    assert said("step ")[:1] == ["step draft started"]
    trigger = deferred.value.trigger
    assert isinstance(trigger, NoukaiJobTrigger)
    arguments = trigger.serialize()[1]
    assert (arguments["follow"], arguments["logged_steps"]) == ("steps", len(said("step ")))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: "-".join(map(str, fault.values())))
@pytest.mark.parametrize("where", ["worker", "triggerer"])
async def test_the_stream_changes_nothing(
    said: Any, settings: ConnectionSettings, emulator: Emulator, fault: dict[str, Any], where: str
) -> None:
    """A stream that ends, stalls, repeats, sends a huge event or is refused changes no outcome."""
    emulator.control.script("flow", steps=STEPS, after_seconds=0.5, outcome="never")
    emulator.control.fault(**fault)
    refused = fault["kind"] == "status" or (fault["kind"] == "not_found" and where == "triggerer")

    def finish_once_followed() -> None:
        emulator.control.wait_for("stream", timeout=LONGEST_WAIT)
        if refused:
            wait_until(lambda: said("steps not followed"), "the refusal in the log")
        (job,) = emulator.control.jobs()
        emulator.control.finish(job["id"], result=7)

    with ThreadPoolExecutor(1) as pool:
        finished = pool.submit(finish_once_followed)
        if where == "worker":
            assert run_on_worker(emulator, follow="steps") == 7
        else:
            job_id = _client_cache.shared_client(settings).flow(FLOW).job("Hello").id
            assert (await run_trigger(job_id, follow="steps")).state == "completed"
        finished.result()
    assert len(set(said("step "))) == len(said("step "))
    assert len(said("steps not followed")) == refused
    # The first poll may come after the end: there is no state to change then.
    assert [line for line in said() if line in ("completed", "pending → completed", "running → completed")]


def test_a_killed_task_leaves_no_stream(
    said: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the wait of a task is interrupted, its stream ends with it."""
    from noukai_airflow import _wait

    def interrupted(*_: object) -> None:
        emulator.control.wait_for("stream")
        raise KeyboardInterrupt

    emulator.control.script("flow", steps=STEPS, outcome="never")
    monkeypatch.setattr(_wait.JobWait, "_publish_status", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_on_worker(emulator, follow="steps")
    from noukai_core._engine.follow import _followed

    assert _followed._count == 0


def test_nothing_is_logged_while_a_job_runs(said: Any, emulator: Emulator) -> None:
    """With `None`, a task logs the submission and the end of its job, and nothing in between."""
    emulator.control.script("flow", after_seconds=0.5, progress=[{"percent": 10}, {"percent": 50}], result=7)
    assert run_on_worker(emulator, follow=None) == 7
    submitted, end = said()
    assert submitted == "submitted"
    assert end.endswith("completed")


@pytest.mark.parametrize("follow", ["none", "trace", True])
def test_other_values_are_refused(follow: Any) -> None:
    """Another value fails when the DAG is parsed, and the message says what is allowed."""
    for make in (operator, lambda **given: NoukaiJobSensor(task_id="task", flow=FLOW, job_id="1", **given)):
        with pytest.raises(ValueError, match=r"follow is .* but must be"):
            make(follow=follow)


@pytest.mark.usefixtures("all_steps")
@pytest.mark.parametrize("follow", ["state", "steps", None])
def test_a_sensor_follows(
    said: Any,
    settings: ConnectionSettings,
    emulator: Emulator,
    follow: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A sensor on a worker logs as much as it is told to."""
    emulator.control.script("flow", steps=STEPS, after_seconds=1)
    job = _client_cache.shared_client(settings).flow(FLOW).job("Hello")
    capsys.readouterr()
    sensor = NoukaiJobSensor(task_id="task", flow=FLOW, job_id=job.id, poke_interval=0.1, follow=follow)
    sensor.execute({"ti": FakeTask()})  # type: ignore[typeddict-item]
    states = capsys.readouterr().out.count(f"Noukai job {job.id} of {FLOW}: ")
    assert said("step ") == (SHOWN if follow == "steps" else [])
    assert states == 1 if follow is None else states > 1


def test_a_rescheduled_sensor_has_no_stream() -> None:
    """A sensor that is rescheduled does not run between its polls, so it cannot follow steps."""
    with pytest.raises(ValueError, match="rescheduled"):
        NoukaiJobSensor(task_id="task", flow=FLOW, job_id="1", mode="reschedule", follow="steps")
