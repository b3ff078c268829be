"""The sensor's decisions, with a fake task and a local Noukai."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
    XCom,
)

from noukai_airflow import _client_cache
from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_airflow.exceptions import (
    NoukaiException,
    NoukaiJobCancelledException,
    NoukaiJobCompletedException,
    NoukaiJobNotFoundException,
    NoukaiJobTimeoutException,
    NoukaiPermanentException,
    NoukaiSensorJobFailedException,
)
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.sensors.noukai import NoukaiJobSensor
from noukai_core import RunUrlTemplate
from tests.airflow.conftest import FakeTask

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core import Job
    from noukai_core.emulator import Emulator

FLOW = "acme/demo/flow"


@pytest.fixture
def job(settings: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that another task submitted and that has not ended."""
    monkeypatch.setattr(NoukaiHook, "settings", settings)
    emulator.control.script("flow", outcome="never")
    return _client_cache.shared_client(settings).flow(FLOW).job("Hello")


def sensor(job_id: str, **arguments: Any) -> NoukaiJobSensor:
    return NoukaiJobSensor(task_id="task", flow=FLOW, job_id=job_id, poke_interval=0.05, **arguments)


def context() -> Any:
    return {"ti": FakeTask()}


@pytest.mark.parametrize("states", [(), "completed", ("completed", "running"), ("done",)])
def test_states_that_are_not_final(states: Any) -> None:
    """The allowed states are checked when the DAG is parsed."""
    with pytest.raises(ValueError, match=r"allowed_states is .*cancelled, completed, failed"):
        sensor("job-1", allowed_states=states)


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_job_that_has_ended(deferrable: bool, job: Job, emulator: Emulator) -> None:
    """A job that ended before the sensor starts lets it succeed at once, without a deferral."""
    emulator.control.finish(job.id, result=[1, 2])
    here = context()
    assert sensor(job.id, deferrable=deferrable).execute(here) == [1, 2]
    assert here["ti"].xcoms["job_status"]["state"] == "completed"


@pytest.mark.parametrize("deferrable", [False, True])
def test_the_link(
    deferrable: bool,
    job: Job,
    settings: ConnectionSettings,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sensor links to its job from its first poll on, while it waits and after it has ended."""
    monkeypatch.setattr(XCom, "get_value", lambda ti_key, **_: ti_key.xcoms.get("job_url"))
    connected = replace(settings, run_url_template=RunUrlTemplate("https://noukai.test/{flow}/{job_id}"))
    monkeypatch.setattr(NoukaiHook, "settings", connected)
    page, here = f"https://noukai.test/flow/{job.id}", context()
    waiting = sensor(job.id, deferrable=deferrable)
    (link,) = waiting.operator_extra_links
    assert link.get_link(waiting, ti_key=here["ti"]) == ""
    if deferrable:
        with pytest.raises(TaskDeferred):
            waiting.execute(here)
    else:
        assert not waiting.poke(here)
    assert link.get_link(waiting, ti_key=here["ti"]) == page
    assert here["ti"].xcoms["job_url"] == here["ti"].xcoms[link.xcom_key] == page
    resumed = sensor(job.id, deferrable=deferrable)
    assert link.get_link(resumed, ti_key=here["ti"]) == page
    emulator.control.finish(job.id)
    resumed.execute_complete(here, JobEvent(job.id, Reason.FINISHED, "completed").payload())
    assert link.get_link(resumed, ti_key=here["ti"]) == page


def test_an_output_that_no_database_holds(
    job: Job, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """The sensor returns what can be stored of an output, and its log says that this is another one."""
    emulator.control.finish(job.id, result="a\0b")
    assert sensor(job.id).execute(context()) == "a\ufffdb"
    assert f"Noukai job {job.id} of {FLOW}: output changed (" in caplog.text


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [("failed", NoukaiSensorJobFailedException), ("cancelled", NoukaiJobCancelledException)],
)
@pytest.mark.parametrize("deferrable", [False, True])
def test_a_job_without_a_result(
    deferrable: bool, outcome: str, expected: type[Exception], job: Job, emulator: Emulator
) -> None:
    """A job without a result fails the sensor permanently, unless it is allowed or `soft_fail` is on."""
    emulator.control.finish(job.id, outcome=outcome)
    with pytest.raises(expected, match=job.id):
        sensor(job.id, deferrable=deferrable).execute(context())
    with pytest.raises(AirflowSkipException, match=job.id):
        sensor(job.id, deferrable=deferrable, soft_fail=True).execute(context())
    assert sensor(job.id, deferrable=deferrable, allowed_states=(outcome,)).execute(context()) is None


@pytest.mark.parametrize("state", ["failed", "cancelled"])
@pytest.mark.parametrize("mode", [{}, {"mode": "reschedule"}, {"deferrable": True}])
def test_a_completed_job_that_is_not_allowed(
    mode: dict[str, Any], state: str, job: Job, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that completed although only other ends are allowed fails the sensor permanently, or softly."""
    monkeypatch.setattr(FakeTask, "get_first_reschedule_date", lambda *_: None, raising=False)
    emulator.control.finish(job.id, result=[1, 2])
    waiting = sensor(job.id, allowed_states=(state,), **mode)
    message = rf"completed, but allowed_states is \('{state}',\) .*{job.id}"
    finished = JobEvent(job.id, Reason.FINISHED, "completed").payload()
    for end in (
        lambda: waiting.execute(context()),
        lambda: waiting.resume_execution("execute_complete", {"event": finished}, context()),
        lambda: waiting.resume_execution("__fail__", {"error": "Trigger timeout"}, context()),
    ):
        with pytest.raises(NoukaiJobCompletedException, match=message) as caught:
            end()
        assert isinstance(caught.value, AirflowFailException)
        assert caught.value.job_id == job.id
    with pytest.raises(AirflowSkipException, match=message):
        sensor(job.id, allowed_states=(state,), soft_fail=True, **mode).execute(context())


@pytest.mark.parametrize("wrong", [{"job_id": "a/b"}, {"flow": "NotAFlow"}])
@pytest.mark.parametrize("follow", ["state", "steps"])
def test_an_argument_that_is_wrong_at_run_time(follow: str, wrong: dict[str, Any], job: Job) -> None:
    """Whatever a sensor follows, a rendered argument that is wrong is permanent, and `soft_fail` applies."""
    arguments: dict[str, Any] = {"task_id": "task", "flow": FLOW, "job_id": job.id, "follow": follow, **wrong}
    with pytest.raises(NoukaiPermanentException):
        NoukaiJobSensor(**arguments).execute(context())
    with pytest.raises(AirflowSkipException):
        NoukaiJobSensor(**arguments, soft_fail=True).execute(context())


def test_no_pause(
    job: Job, settings: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `poke_interval` of 0, which Airflow allows, works in the triggerer as well."""

    async def read_connection(hook: NoukaiHook) -> ConnectionSettings:
        return settings

    monkeypatch.setattr(NoukaiHook, "_read_connection", read_connection)
    task = NoukaiJobSensor(task_id="task", flow=FLOW, job_id=job.id, poke_interval=0, deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context())
    emulator.control.finish(job.id)
    trigger: Any = deferred.value.trigger
    assert asyncio.run(trigger._wait()).reason is Reason.FINISHED


def test_a_poll_that_fails(job: Job, emulator: Emulator) -> None:
    """After a transient error the next poll decides."""
    emulator.control.fault("status", on="poll", times=1, status=403)
    with pytest.raises(NoukaiPermanentException):
        sensor(job.id).execute(context())
    emulator.control.fault("status", on="poll", times=None, status=500)
    assert not sensor(job.id).poke(context())


class Wrapping(NoukaiJobSensor):
    """What a user may derive: as everywhere, it continues with the context and the event."""

    def execute_complete(self, context: Any, event: Any = None) -> Any:  # type: ignore[override]
        """Wrap the output."""
        return {"wrapped": super().execute_complete(context, event)}


def test_a_subclass_with_the_usual_arguments(job: Job, emulator: Emulator) -> None:
    """A subclass may continue with the context and the event alone, and the deadline still applies."""
    event = JobEvent(job.id, Reason.TIMED_OUT, "running").payload()
    task = Wrapping(task_id="task", flow=FLOW, job_id=job.id, poke_interval=0.05)
    with pytest.raises(AirflowSensorTimeout):
        task.resume_execution("execute_complete", {"event": event, "deadline": time.time() - 1}, context())
    emulator.control.finish(job.id, result="whole")
    resumption = {"event": event, "deadline": time.time() + 60}
    assert task.resume_execution("execute_complete", resumption, context()) == {"wrapped": "whole"}


@pytest.mark.usefixtures("connected_by_name")
def test_a_deferred_sensor_keeps_its_connection(job: Job, emulator: Emulator) -> None:
    """A sensor whose DAG names another connection since it deferred polls the job where it is."""
    with pytest.raises(TaskDeferred) as deferred:
        sensor(job.id, deferrable=True).execute(context())
    emulator.control.finish(job.id, result="whole")
    task = sensor(job.id, deferrable=True, noukai_conn_id="elsewhere")
    assert task.resume_execution("execute_complete", deferred.value.kwargs, context()) == "whole"


def test_an_unknown_job(job: Job) -> None:
    """A job that the server does not know fails the sensor after the grace period."""
    with pytest.raises(NoukaiJobNotFoundException):
        sensor("job-gone", timeout=30).execute(context())


@pytest.mark.parametrize("event", [None, "success", "failed", {}, {"job_id": 7}])
def test_a_malformed_event_is_ignored(event: object, job: Job, emulator: Emulator) -> None:
    """With any event, the server's state decides."""
    with pytest.raises(NoukaiException, match="unknown event"):
        sensor(job.id).execute_complete(context(), event)
    emulator.control.finish(job.id, result="whole")
    assert sensor(job.id).execute_complete(context(), event) == "whole"


@pytest.mark.parametrize(
    "event", [JobEvent("job-of-before", Reason.FINISHED, "completed"), JobEvent("", Reason.TRANSIENT_ERROR)]
)
def test_the_sensor_defers_again(event: JobEvent, job: Job) -> None:
    """After a transient error, or an event of another job, the sensor waits until the same deadline."""
    reported = event.payload() | {"job_id": event.job_id or job.id}
    deadline = time.time() + 60
    with pytest.raises(TaskDeferred) as deferred:
        sensor(job.id).execute_complete(context(), reported, deadline)
    assert (deferred.value.trigger.job_id, deferred.value.trigger.deadline) == (job.id, deadline)
    assert not deferred.value.trigger.cancel_on_kill


def test_a_poll_that_fails_after_the_event(job: Job, emulator: Emulator) -> None:
    """If the poll after the trigger's event fails, the sensor defers again."""
    emulator.control.finish(job.id)
    emulator.control.fault("status", on="poll", times=1, status=503, retry_after=60)
    event = JobEvent(job.id, Reason.FINISHED, "completed").payload()
    with pytest.raises(TaskDeferred):
        sensor(job.id).execute_complete(context(), event, time.time() + 60)


def test_the_timeout_in_the_triggerer(job: Job) -> None:
    """At its timeout the sensor fails as on a worker, and the job is left running."""
    event = JobEvent(job.id, Reason.TIMED_OUT, "running").payload()
    with pytest.raises(AirflowSensorTimeout, match=job.id):
        sensor(job.id, timeout=5).execute_complete(context(), event, time.time() - 1)
    assert not job.status().finished


def deferral(task: NoukaiJobSensor) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context())
    return deferred.value


@pytest.mark.parametrize(("timeout", "execution_timeout"), [(7200, 3600), (3600, 7200), (3600, None)])
def test_the_limits_of_a_deferral(timeout: int, execution_timeout: int | None, job: Job) -> None:
    """A deferral ends by the `timeout` of the sensor or its `execution_timeout`, whichever is first."""
    limit = None if execution_timeout is None else timedelta(seconds=execution_timeout)
    began = time.time()
    task = sensor(job.id, deferrable=True, timeout=timeout, execution_timeout=limit)
    first = deferral(task)
    assert began + 3600 <= first.trigger.deadline <= time.time() + 3600
    lags = JobEvent(job.id, Reason.FINISHED).payload()
    with pytest.raises(TaskDeferred) as again:
        task.resume_execution("execute_complete", {**(first.kwargs or {}), "event": lags}, context())
    assert again.value.trigger.deadline == first.trigger.deadline


@pytest.mark.parametrize("reason", [Reason.TIMED_OUT, Reason.RESPONSE_TOO_LARGE, None])
@pytest.mark.parametrize(
    ("timeout", "expected"), [(7200, NoukaiJobTimeoutException), (60, AirflowSensorTimeout)]
)
def test_the_limit_that_ended_a_deferral(
    timeout: int, expected: type[Exception], reason: Reason | None, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An `execution_timeout` that is over leaves the sensor its retries, and its own `timeout` does not."""

    def task(**arguments: Any) -> NoukaiJobSensor:
        limit = timedelta(hours=1)
        return sensor(job.id, deferrable=True, timeout=timeout, execution_timeout=limit, **arguments)

    stored = deferral(task()).kwargs or {}
    if reason is None:
        resumption: Any = ("__fail__", {"error": "Trigger timeout"})
    else:
        over = {name: stored[name] - 7200 for name in ("deadline", "execution_deadline")}
        event = JobEvent(job.id, reason).payload()
        resumption = ("execute_complete", {**stored, **over, "event": event})
    with pytest.raises(expected, match=job.id) as caught:
        task().resume_execution(*resumption, context())
    assert not isinstance(caught.value, AirflowFailException)
    with pytest.raises(AirflowSkipException):
        task(soft_fail=True).resume_execution(*resumption, context())


def test_a_job_that_has_not_ended(job: Job) -> None:
    """A deferrable sensor polls once, and then waits in the triggerer."""
    with pytest.raises(TaskDeferred) as deferred:
        sensor(job.id, deferrable=True).execute(context())
    assert deferred.value.trigger.job_id == job.id


def test_a_response_that_is_too_large_for_a_triggerer(job: Job, emulator: Emulator) -> None:
    """What a triggerer cannot read is read on a worker, which waits there for the rest of the time."""
    event = JobEvent(job.id, Reason.RESPONSE_TOO_LARGE, "running").payload()
    polls = emulator.control.counts(job.id)["poll"]

    def finish() -> None:
        emulator.control.wait_for("poll", polls + 3, job_id=job.id, timeout=300)
        emulator.control.finish(job.id, result="large")

    finishing = threading.Thread(target=finish)
    finishing.start()
    waiting = sensor(job.id, timeout=600, mode="poke")
    assert waiting.execute_complete(context(), event, time.time() + 300) == "large"
    finishing.join()


def test_a_response_that_no_worker_can_read(
    job: Job, settings: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response that is too large even for a worker is an error at once, since no poll changes it."""
    emulator.control.finish(job.id, result="x" * 100_000)
    small = replace(settings, options=(*settings.options, ("max_response_bytes", 50_000)))
    monkeypatch.setattr(NoukaiHook, "settings", small)
    with pytest.raises(NoukaiException, match="max_response_bytes"):
        sensor(job.id, timeout=600).execute(context())


def test_a_sensor_without_xcoms(job: Job, emulator: Emulator) -> None:
    """With `do_xcom_push=False`, nothing is pushed, and the output is still returned."""
    emulator.control.finish(job.id, result="done")
    here = context()
    assert sensor(job.id, do_xcom_push=False).execute(here) == "done"
    assert here["ti"].xcoms == {}


def test_a_deferral_that_airflow_ends(job: Job, emulator: Emulator) -> None:
    """A sensor whose triggerer was down until its time was over takes the result of a job that has ended."""
    timeout: Any = ("__fail__", {"error": "Trigger timeout"})
    task = sensor(job.id, deferrable=True, soft_fail=True)
    with pytest.raises(AirflowSkipException):
        task.resume_execution(*timeout, context())
    emulator.control.finish(job.id, result="done")
    assert task.resume_execution(*timeout, context()) == "done"


@pytest.mark.parametrize("reason", [Reason.FINISHED, Reason.TIMED_OUT])
def test_a_poll_that_lags_behind_the_triggers(reason: Reason, job: Job) -> None:
    """A sensor waits on if its own poll does not show the end yet; about the time it believes the trigger."""
    task = sensor(job.id, deferrable=True, timeout=3600)
    event = JobEvent(job.id, reason).payload()
    with pytest.raises(TaskDeferred if reason is Reason.FINISHED else AirflowSensorTimeout):
        task.execute_complete(context(), event, deadline=time.time() + 3600)
