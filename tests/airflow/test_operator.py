"""The operator's decisions, with a fake task and a local Noukai."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from noukai_airflow import _client_cache
from noukai_airflow._compat import AirflowTaskTerminated
from noukai_airflow._job_store import JobRecord, JobStore
from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_airflow.exceptions import (
    NoukaiException,
    NoukaiJobCancelledException,
    NoukaiJobFailedException,
    NoukaiJobTimeoutException,
    NoukaiPermanentException,
    NoukaiTransientException,
)
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_core import RunUrlTemplate
from tests.airflow.conftest import MemoryStore

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core.emulator import Emulator

FLOW = "acme/demo/flow"


def operator(**arguments: Any) -> NoukaiRunJobOperator:
    return NoukaiRunJobOperator(task_id="task", flow=FLOW, message="Hello", poll_interval=0.05, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timeout": 0}, "timeout is 0 (int), but must be a timedelta or a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": "soon"}, "timeout is 'soon'"),
        ({"timeout": True}, "timeout is True"),
        (
            {"inline_wait": -1},
            "inline_wait is -1 (int), but must be a timedelta or a number of seconds of 0 or more",
        ),
        ({"on_cancelled": "ignore"}, "on_cancelled is 'ignore', but must be 'fail' or 'skip'"),
    ],
)
def test_invalid_arguments_fail_when_the_dag_is_parsed(arguments: dict[str, Any], message: str) -> None:
    """Arguments without templates are checked at once, and the message says what is allowed."""
    with pytest.raises(ValueError, match=re.escape(message)):
        operator(**arguments)


def test_durations() -> None:
    """A duration is a number of seconds or a timedelta."""
    made = operator(timeout=timedelta(minutes=1), inline_wait=0)
    assert (made.timeout, made.inline_wait) == (60.0, 0.0)


@pytest.mark.parametrize("flow", ["../x", "a/b", "Upper/case/flow", "acme/demo/" + "x" * 51])
def test_a_malformed_flow(flow: str, connected: ConnectionSettings, context: Any, emulator: Emulator) -> None:
    """Invalid input is rejected permanently, and nothing is sent."""
    task = operator()
    task.flow = flow
    with pytest.raises(NoukaiPermanentException):
        task.execute(context)
    assert emulator.control.counts().get("submit", 0) == 0


def test_completed(connected: ConnectionSettings, context: Any, emulator: Emulator) -> None:
    """The output of the flow is returned, and the XComs are pushed."""
    emulator.control.script("flow", result=[1, 2])
    assert operator().execute(context) == [1, 2]
    assert set(context["ti"].xcoms) == {"job_id", "job_status"}


@pytest.mark.parametrize("wait", [True, False], ids=["waiting", "submitting"])
def test_several_jobs_in_one_task(
    connected: ConnectionSettings, context: Any, emulator: Emulator, wait: bool
) -> None:
    """A task that calls the operator in a loop gets a job for each call, in a retry as well."""
    for try_number in (1, 2):
        context["ti"].try_number = try_number
        for message in ("one", "two", "three"):
            task = NoukaiRunJobOperator(
                task_id="inner", flow=FLOW, message=message, poll_interval=0.05, wait_for_completion=wait
            )
            returned = task.execute(context)
            job = emulator.control.jobs()[-1]
            assert job["message"] == message
            assert returned == ({"message": message} if wait else job["id"])
    assert len(emulator.control.jobs()) == 6


def test_a_callback(connected: ConnectionSettings, context: Any, emulator: Emulator) -> None:
    """The address that Noukai calls at the end is submitted with the job."""
    callback = {"callback_url": "https://relay.example/noukai", "callback_events": ["flow.failed"]}
    operator(**callback).execute(context)
    (job,) = emulator.control.jobs()
    assert (job["callback_url"], job["callback_events"]) == tuple(callback.values())


def test_the_link(settings: ConnectionSettings, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is that of the task's job, or else the one that the task has pushed, or empty."""
    from airflow.providers.common.compat.sdk import XCom

    pushed: list[str] = []
    monkeypatch.setattr(XCom, "get_value", lambda **_: pushed[0] if pushed else None)
    connected = replace(settings, run_url_template=RunUrlTemplate("https://noukai.test/{flow}/{job_id}"))
    monkeypatch.setattr(NoukaiHook, "settings", connected)
    task, key = operator(), context["ti"]
    (link,) = task.operator_extra_links
    assert link.get_link(task, ti_key=key) == ""
    task.execute(context)
    assert link.get_link(task, ti_key=key) == context["ti"].xcoms["job_url"]
    pushed.append("https://noukai.test/of-an-earlier-job")
    assert link.get_link(operator(), ti_key=key) == "https://noukai.test/of-an-earlier-job"
    without, pushed[:] = operator(), []
    monkeypatch.setattr(NoukaiHook, "settings", settings)
    without.execute(context)
    assert link.get_link(without, ti_key=key) == ""


def test_failed(connected: ConnectionSettings, context: Any, emulator: Emulator) -> None:
    """A failed job raises with its id and the server's reason, and no frame of the package hides it."""
    emulator.control.script("flow", outcome="failed", error="the model gave up")
    with pytest.raises(
        NoukaiJobFailedException, match=r"^failed after \d+ s .*: the model gave up"
    ) as caught:
        operator().execute(context)
    assert caught.value.job_id == context["ti"].xcoms["job_id"]
    assert caught.value.__suppress_context__
    frames = [frame.name for frame in caught.traceback if "noukai_airflow" in str(frame.path)]
    assert len(frames) <= 1
    status = context["ti"].xcoms["job_status"]
    assert (status["state"], status["error"], status["failed_step"]) == (
        "failed",
        "the model gave up",
        "echo",
    )


def test_the_cost_of_a_job_that_timed_out(
    connected: ConnectionSettings, context: Any, emulator: Emulator
) -> None:
    """A traced job that is cancelled at its deadline is reported with its tokens and its cost."""
    steps = [{"stepId": "a", "tokens": {"total": 30}, "costUsd": "0.002"}]
    emulator.control.script("flow", outcome="never", steps=steps)
    with pytest.raises(NoukaiJobTimeoutException):
        operator(timeout=0.5, trace=True).execute(context)
    status = context["ti"].xcoms["job_status"]
    assert (status["state"], status["error"]) == ("cancelled", "timed out")
    assert (status["total_tokens"], status["cost_usd"]) == (30, "0.002")


@pytest.mark.parametrize("event", [None, "success", "failed", {}, {"job_id": 7}, ["job"]])
def test_a_malformed_event_is_ignored(
    event: object, connected: ConnectionSettings, context: Any, emulator: Emulator
) -> None:
    """With any event, a task succeeds only if the server says that its job has completed."""
    emulator.control.script("flow", outcome="never")
    task = operator(wait_for_completion=False)
    job_id = task.execute(context)
    with pytest.raises(NoukaiException, match=job_id):
        task.execute_complete(context, event)
    emulator.control.finish(job_id, outcome="failed")
    with pytest.raises(NoukaiJobFailedException):
        task.execute_complete(context, event)


def test_an_event_without_any_job(connected: ConnectionSettings, context: Any) -> None:
    """If the job is not known at all, the task fails, and the error says so."""
    with pytest.raises(NoukaiException, match="names no Noukai job: 'success'"):
        operator().execute_complete(context, "success")


def test_an_event_without_arguments(connected: ConnectionSettings, context: Any, emulator: Emulator) -> None:
    """The event alone leads to the result, as in `dag.test()`, which drops the arguments of a deferral."""
    emulator.control.script("flow", result="whole", after_seconds=0)
    job = _client_cache.shared_client(connected).flow(FLOW).job("Hello")
    job.wait(timeout_ms=5000)
    event = JobEvent(job.id, Reason.FINISHED, "completed").payload()
    assert operator().execute_complete(context, event) == "whole"


def test_an_event_about_another_job(connected: ConnectionSettings, context: Any, emulator: Emulator) -> None:
    """After an event of another job, the task defers again."""
    from airflow.providers.common.compat.sdk import TaskDeferred

    emulator.control.script("flow", outcome="never")
    job = _client_cache.shared_client(connected).flow(FLOW).job("Hello")
    event = JobEvent("job-of-an-earlier-job", Reason.FINISHED, "completed").payload()
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True).execute_complete(context, event, job_id=job.id, flow=FLOW)
    assert deferred.value.trigger.job_id == job.id


@pytest.mark.parametrize("ended", [True, False])
def test_responses_that_are_too_large_for_a_triggerer(
    ended: bool, connected: ConnectionSettings, context: Any, emulator: Emulator
) -> None:
    """The task fetches the result, or waits for it on the worker, and does not defer again."""
    if ended:
        emulator.control.script("flow", result_bytes=2_000_000, after_seconds=0)
    else:
        emulator.control.script("flow", result_bytes=2_000_000, after_polls=3)
    job = _client_cache.shared_client(connected).flow(FLOW).job("Hello")
    event = JobEvent(job.id, Reason.RESPONSE_TOO_LARGE).payload()
    resumed = operator(deferrable=True, inline_wait=0)
    result = resumed.execute_complete(context, event, job_id=job.id, flow=FLOW)
    assert len(str(result)) >= 2_000_000


def test_a_transient_error_when_the_task_is_resumed(
    connected: ConnectionSettings, context: Any, emulator: Emulator
) -> None:
    """Transient errors after the trigger's event are retried as at any other time."""
    emulator.control.script("flow", result="whole", after_seconds=0)
    job = _client_cache.shared_client(connected).flow(FLOW).job("Hello")
    job.wait(timeout_ms=5000)
    emulator.control.fault("status", on="poll", times=5, status=503)
    event = JobEvent(job.id, Reason.FINISHED, "completed").payload()
    assert operator().execute_complete(context, event, job_id=job.id, flow=FLOW) == "whole"


def test_a_job_that_ended_in_time_keeps_its_result(
    connected: ConnectionSettings, context: Any, emulator: Emulator
) -> None:
    """A job that ended in time is not cancelled, even if the task is resumed after the deadline."""
    emulator.control.script("flow", result="whole", after_seconds=0)
    job = _client_cache.shared_client(connected).flow(FLOW).job("Hello")
    job.wait(timeout_ms=5000)
    emulator.control.fault("status", on="poll", times=2, status=503)
    event = JobEvent(job.id, Reason.FINISHED, "completed").payload()
    late = time.time() - 100
    assert operator().execute_complete(context, event, job_id=job.id, flow=FLOW, deadline=late) == "whole"
    assert emulator.control.counts(job.id)["cancel"] == 0


def test_a_deadline_while_the_server_is_unavailable(
    connected: ConnectionSettings, context: Any, store: MemoryStore, emulator: Emulator
) -> None:
    """A job that cannot be polled at its deadline has timed out, and is cancelled."""
    emulator.control.script("flow", outcome="never")
    JobStore(store).write(JobRecord.new(0, "submission", FLOW))
    job = _client_cache.shared_client(connected).flow(FLOW).job("Hello")
    emulator.control.fault("status", on="poll", times=None, status=503)
    event = JobEvent(job.id, Reason.TIMED_OUT).payload()
    with pytest.raises(NoukaiJobTimeoutException, match=r"timed out.*; cancelled"):
        operator().execute_complete(context, event, job_id=job.id, flow=FLOW, deadline=time.time() - 1)
    assert emulator.control.counts(job.id)["cancel"] == 1


def test_a_trace_that_is_not_available(
    connected: ConnectionSettings, context: Any, emulator: Emulator
) -> None:
    """Without a trace the task succeeds, and its status has neither tokens nor cost."""
    emulator.control.fault("status", on="trace", times=None, status=403)
    operator(trace=True).execute(context)
    assert set(context["ti"].xcoms["job_status"]) == {
        *("state", "created_at", "started_at", "completed_at"),
        "duration",
    }


@pytest.mark.parametrize(
    ("durable", "retries", "try_number", "attaches"),
    [(True, 1, 1, True), (False, 1, 1, False), (True, 0, 1, False), (True, 1, 2, False)],
    ids=["retry left", "not durable", "no retries", "last try"],
)
def test_a_retry_is_promised_only_where_one_attaches(
    durable: bool,
    retries: int,
    try_number: int,
    attaches: bool,
    connected: ConnectionSettings,
    context: Any,
    emulator: Emulator,
) -> None:
    """That a retry attaches to a job that is left running is said only where one is left that does."""
    emulator.control.script("flow", outcome="never")
    context["ti"].try_number, context["ti"].max_tries = try_number, retries
    task = operator(timeout=0.3, cancel_on_timeout=False, durable=durable, retries=retries)
    with pytest.raises(NoukaiJobTimeoutException, match="left running") as caught:
        task.execute(context)
    assert ("a retry attaches to it" in str(caught.value)) == attaches


@pytest.mark.parametrize(("on_final_failure", "cancelled"), [("keep", False), ("cancel", True)])
def test_a_job_that_is_left_behind(
    on_final_failure: Any,
    cancelled: bool,
    connected: ConnectionSettings,
    context: Any,
    emulator: Emulator,
) -> None:
    """When the service is not reached and no retry is left, the job is named in a warning, or cancelled."""
    emulator.control.script("flow", outcome="never")
    emulator.control.fault("status", on="poll", times=None, status=503)
    with pytest.raises(NoukaiTransientException):
        operator(on_final_failure=on_final_failure).execute(context)
    (job,) = emulator.control.jobs()
    assert (job["state"] == "cancelled") == cancelled


@pytest.mark.parametrize(("on_final_failure", "cancelled"), [("keep", False), ("cancel", True)])
def test_a_job_that_the_last_try_cannot_attach_to(
    on_final_failure: Any,
    cancelled: bool,
    connected: ConnectionSettings,
    context: Any,
    store: MemoryStore,
    emulator: Emulator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the last try fails before it has attached to a job, the job is named in a warning, or cancelled."""
    emulator.control.script("flow", outcome="never")
    context["task_state_store"], context["ti"].max_tries = store, 1
    with pytest.raises(NoukaiJobTimeoutException):
        operator(timeout=0.3, cancel_on_timeout=False, retries=1).execute(context)
    emulator.control.fault("status", on="poll", times=None, status=401)
    context["ti"].try_number = 2
    with caplog.at_level("WARNING"), pytest.raises(NoukaiPermanentException):
        operator(on_final_failure=on_final_failure, retries=1).execute(context)
    (job,) = emulator.control.jobs()
    assert (job["state"] == "cancelled") == cancelled
    named = f"Noukai job {job['id']} of {FLOW}: left running (no retry is left)"
    assert (named in caplog.messages) == (not cancelled)


def test_a_job_that_no_retry_finds(
    connected: ConnectionSettings, context: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a state store, nothing leads to a job in a session of the user's: a try that fails names it."""
    emulator.control.script("flow", outcome="never")
    emulator.control.fault("status", on="poll", times=None, status=503)
    context["ti"].max_tries = 1
    del context["task_state_store"]
    with caplog.at_level("WARNING"), pytest.raises(NoukaiTransientException):
        operator(session_id=str(uuid.uuid4()), retries=1).execute(context)
    (job,) = emulator.control.jobs()
    named = f"Noukai job {job['id']} of {FLOW}: left running (a retry submits a new job)"
    assert named in caplog.messages


def test_a_job_is_not_cancelled_while_a_retry_is_left(
    connected: ConnectionSettings, context: Any, emulator: Emulator
) -> None:
    """`on_final_failure="cancel"` leaves a job alone that a retry attaches to."""
    emulator.control.script("flow", outcome="never")
    emulator.control.fault("status", on="poll", times=None, status=503)
    context["ti"].max_tries = 1
    with pytest.raises(NoukaiTransientException):
        operator(on_final_failure="cancel", retries=1).execute(context)
    assert emulator.control.counts().get("cancel", 0) == 0


@pytest.mark.parametrize("configured", ["True", "False"])
def test_the_default_of_deferrable(configured: str) -> None:
    """Airflow's own setting determines whether the operator and the sensor defer."""
    program = (
        "from noukai_airflow.operators.noukai import NoukaiRunJobOperator as Operator\n"
        "from noukai_airflow.sensors.noukai import NoukaiJobSensor as Sensor\n"
        "made = Operator(task_id='a', flow='f'), Sensor(task_id='b', flow='f', job_id='j')\n"
        "print(*(task.deferrable for task in made))"
    )
    environment = os.environ | {"AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": configured}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.stdout.splitlines()[-1:] == [f"{configured} {configured}"], done.stderr


def test_a_deferral(connected: ConnectionSettings, context: Any, emulator: Emulator) -> None:
    """A deferral stores no key, and Airflow's own limit is later than the job's deadline."""
    from airflow.providers.common.compat.sdk import TaskDeferred

    emulator.control.script("flow", outcome="never")
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True, inline_wait=0.1, timeout=60).execute(context)
    assert connected.api_key not in repr(deferred.value.trigger.serialize()) + repr(deferred.value.kwargs)
    assert timedelta(seconds=60) < deferred.value.timeout < timedelta(seconds=120)


def test_a_deadline_while_the_store_fails(
    connected: ConnectionSettings,
    context: Any,
    store: MemoryStore,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job that does not end in time is cancelled even if Airflow does not store that."""
    emulator.control.script("flow", outcome="never")
    write = store.set

    def set_or_fail(key: str, value: Any, *, retention: Any = None) -> None:
        if value.get("abandoned"):
            raise RuntimeError("database is locked")
        write(key, value, retention=retention)

    monkeypatch.setattr(store, "set", set_or_fail)
    with pytest.raises(NoukaiJobTimeoutException, match=r"timed out after \d+ s; cancelled"):
        operator(timeout=0.3).execute(context)
    (job,) = emulator.control.jobs()
    assert job["state"] == "cancelled"


@pytest.mark.parametrize("on_final_failure", ["keep", "cancel"])
def test_a_deadline_of_a_try_that_airflow_has_replaced(
    on_final_failure: Any,
    connected: ConnectionSettings,
    context: Any,
    store: MemoryStore,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that Airflow presumed dead leaves the job to the next try, which has another id in Airflow."""
    emulator.control.script("flow", outcome="never")

    def write_once(key: str, value: Any, *, retention: Any = None) -> None:
        monkeypatch.setattr(store, "set", refuse)

    def refuse(key: str, value: Any, *, retention: Any = None) -> None:
        raise RuntimeError("404: task instance not found")

    monkeypatch.setattr(store, "set", write_once)
    context["task_state_store"] = store
    with pytest.raises(NoukaiJobTimeoutException, match=r"left running \(Airflow has begun another try\)"):
        operator(timeout=0.3, on_final_failure=on_final_failure).execute(context)
    (job,) = emulator.control.jobs()
    assert (job["state"], emulator.control.counts().get("cancel", 0)) == ("running", 0)


class Wrapping(NoukaiRunJobOperator):
    """What a user may derive: as everywhere, it continues with the context and the event."""

    def execute_complete(self, context: Any, event: Any = None) -> Any:  # type: ignore[override]
        """Wrap the output."""
        return {"wrapped": super().execute_complete(context, event)}


def finished_while_deferred(context: Any, emulator: Emulator) -> dict[str, Any]:
    """Let a task defer and its job complete, and return the arguments with which Airflow resumes the task."""
    from airflow.providers.common.compat.sdk import TaskDeferred

    emulator.control.script("flow", outcome="never")
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True, inline_wait=0).execute(context)
    (job,) = emulator.control.jobs()
    emulator.control.finish(job["id"], result="whole")
    event = JobEvent(job["id"], Reason.FINISHED, "completed").payload()
    return (deferred.value.kwargs or {}) | {"event": event}


def test_a_subclass_with_the_usual_arguments(
    connected: ConnectionSettings, context: Any, emulator: Emulator
) -> None:
    """A subclass may continue after a deferral with the context and the event alone."""
    resumption = finished_while_deferred(context, emulator)
    task = Wrapping(task_id="task", flow=FLOW, message="Hello", deferrable=True)
    assert task.resume_execution("execute_complete", resumption, context) == {"wrapped": "whole"}


@pytest.mark.usefixtures("connected_by_name")
def test_a_deferred_task_keeps_its_connection(context: Any, emulator: Emulator) -> None:
    """A task whose DAG names another connection since it deferred gets the result from where the job is."""
    resumption = finished_while_deferred(context, emulator)
    task = operator(deferrable=True, noukai_conn_id="elsewhere")
    assert task.resume_execution("execute_complete", resumption, context) == "whole"


def test_a_deadline_cancels(connected: ConnectionSettings, context: Any, emulator: Emulator) -> None:
    """At the deadline the job is cancelled, and the task may be retried."""
    emulator.control.script("flow", outcome="never")
    with pytest.raises(NoukaiJobTimeoutException, match=r"timed out.*; cancelled") as caught:
        operator(timeout=0.3).execute(context)
    assert emulator.control.jobs()[0]["state"] == "cancelled"
    assert caught.value.job_id == emulator.control.jobs()[0]["id"]


def test_cancelled_is_never_retried(connected: ConnectionSettings, context: Any, emulator: Emulator) -> None:
    """A job cancelled on the Noukai side raises an exception that Airflow does not retry."""
    from airflow.providers.common.compat.sdk import AirflowFailException

    emulator.control.script("flow", outcome="cancelled")
    with pytest.raises(NoukaiJobCancelledException) as caught:
        operator().execute(context)
    assert isinstance(caught.value, AirflowFailException)


@pytest.mark.parametrize(
    "key", ["../other/return_value", "a/b", "", "..", "Is it good?", "x#y", "a\\b", "%2e%2e", "job_status"]
)
def test_a_key_that_is_no_xcom(
    key: str, connected: ConnectionSettings, context: Any, emulator: Emulator
) -> None:
    """With `multiple_outputs`, no key of an output leads a request to anything but an XCom of the task."""
    emulator.control.script("flow", result={key: 1})
    with pytest.raises(NoukaiException, match="set multiple_outputs=False"):
        operator(multiple_outputs=True).execute(context)
    context["ti"].try_number = 2
    assert operator().execute(context) == {key: 1}
    assert emulator.control.counts()["submit"] == 1


def test_keys_that_are_xcoms(connected: ConnectionSettings, context: Any, emulator: Emulator) -> None:
    """With `multiple_outputs`, keys such as people write them are allowed."""
    output = {"grade": 1, "Ü 2.5-b_c": 2}
    emulator.control.script("flow", result=output)
    assert operator(multiple_outputs=True).execute(context) == output


@pytest.mark.parametrize("moment", ["before the submission", "before the resumed task knows its job"])
def test_a_kill_that_comes_early(
    moment: str, connected: ConnectionSettings, context: Any, emulator: Emulator
) -> None:
    """A task that is killed before it has a job submits none, and one that resumes obeys the signal."""
    emulator.control.script("flow", outcome="never")
    task_instance = context["ti"]
    task_instance.states = {task_instance.run_id: {task_instance.task_id: "failed"}}
    if moment == "before the submission":
        task = operator()
        task.on_kill()
        with pytest.raises(NoukaiException, match="interrupted before anything was submitted"):
            task.execute(context)
        assert not emulator.control.jobs()
        return
    job_id = operator(wait_for_completion=False).execute(context)
    task = operator()
    task.on_kill()
    with pytest.raises(AirflowTaskTerminated):
        task.execute_complete(context, {"job_id": job_id})
    assert emulator.control.counts(job_id)["cancel"] == 1


def test_an_early_kill_of_a_retry(connected: ConnectionSettings, context: Any, emulator: Emulator) -> None:
    """Where a task keeps no state, a retry that is killed early still looks for its job, and cancels it."""
    emulator.control.script("flow", outcome="never")
    context.pop("task_state_store")
    task_instance = context["ti"]
    task_instance.max_tries = 1
    job_id = operator(wait_for_completion=False, retries=1).execute(context)
    task_instance.xcoms.clear()
    task_instance.try_number = 2
    task_instance.states = {task_instance.run_id: {task_instance.task_id: "failed"}}
    task = operator(retries=1)
    task.on_kill()
    with pytest.raises(AirflowTaskTerminated):
        task.execute(context)
    assert emulator.control.counts(job_id)["cancel"] == 1
    assert emulator.control.counts()["submit"] == 1
