"""How a task with one job ends: at a limit, after a lost trigger, or without a wait in the triggerer."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException, AirflowTaskTimeout, TaskDeferred

from noukai_airflow import _wait
from noukai_airflow._compat import TaskDeferralError, TaskDeferralTimeout
from noukai_airflow._retries import retry_left
from noukai_airflow._task_output import TaskOutput
from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_airflow.exceptions import (
    NoukaiException,
    NoukaiJobFailedException,
    NoukaiJobTimeoutException,
)
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_core import APIError, JobNotFoundError, ResponseTooLargeError
from tests.airflow.conftest import FakeTask
from tests.core.raw_service import COMPLETED, RUNNING, RawService, http

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core.emulator import Emulator

FLOW = "acme/demo/flow"

# What Airflow resumes a task with when its own limit for a deferral has passed, or its trigger is lost.
DEFERRAL_TIMEOUT: Any = ("__fail__", {"error": "Trigger timeout"})
TRIGGER_LOST: Any = ("__fail__", {"error": "Trigger failure", "traceback": None})


def operator(**arguments: Any) -> NoukaiRunJobOperator:
    return NoukaiRunJobOperator(task_id="task", flow=FLOW, message="Hello", poll_interval=0.05, **arguments)


ENDED_BEFORE = http(409, {"detail": {"code": "ENDED", "message": "ended"}})


def deferral(task: NoukaiRunJobOperator, context: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        task.execute(context)
    return raised.value


@pytest.mark.usefixtures("connected")
def test_airflows_limit_in_the_triggerer(context: Any, emulator: Emulator) -> None:
    """When Airflow's own limit ends a deferral, no trigger has acted, so the task cancels its job."""
    emulator.control.script("flow", outcome="never")
    deferral(operator(deferrable=True, inline_wait=0), context)
    with pytest.raises(NoukaiJobTimeoutException, match="timed out; cancelled"):
        operator(deferrable=True).resume_execution(*DEFERRAL_TIMEOUT, context)
    assert [job["state"] for job in emulator.control.jobs()] == ["cancelled"]


@pytest.mark.usefixtures("connected")
def test_a_trigger_that_is_lost(context: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """A task whose trigger Airflow has lost leaves its job running, and the log says so before it fails."""
    emulator.control.script("flow", outcome="never")
    deferral(operator(deferrable=True, inline_wait=0), context)
    with pytest.raises(TaskDeferralError):
        operator(deferrable=True, retries=1).resume_execution(*TRIGGER_LOST, context)
    (job,) = emulator.control.jobs()
    assert f"Noukai job {job['id']} of {FLOW}: left running" in caplog.text
    assert job["state"] in ("pending", "running")


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("resumption", [DEFERRAL_TIMEOUT, TRIGGER_LOST], ids=["timeout", "lost"])
def test_a_flow_that_was_changed_during_the_deferral(
    resumption: Any, context: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """When Airflow itself ends a deferral, the job is asked for and cancelled where it was submitted."""
    emulator.control.script("flow", outcome="never")
    deferral(operator(deferrable=True, inline_wait=0), context)
    changed = NoukaiRunJobOperator(
        task_id="task", flow="acme/demo/other", message="Hello", deferrable=True, on_final_failure="cancel"
    )
    with pytest.raises((NoukaiJobTimeoutException, TaskDeferralError)):
        changed.resume_execution(*resumption, context)
    (job,) = emulator.control.jobs()
    assert job["state"] == "cancelled"
    assert f"Noukai job {job['id']} of {FLOW}: cancelled" in caplog.text


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    ("resumption", "error"), [(DEFERRAL_TIMEOUT, TaskDeferralTimeout), (TRIGGER_LOST, TaskDeferralError)]
)
def test_a_resumption_without_a_job(
    resumption: Any, error: type[Exception], context: Any, emulator: Emulator
) -> None:
    """Airflow's own error is raised as it is where no job is known, and nothing is sent."""
    with pytest.raises(error):
        operator(deferrable=True).resume_execution(*resumption, context)
    assert sum(emulator.control.counts().values()) == 0


@pytest.mark.usefixtures("connected")
def test_a_short_job_of_a_deferrable_task(context: Any, emulator: Emulator) -> None:
    """By default, a deferrable task waits for a short job on its worker, which is quicker than a deferral."""
    emulator.control.script("flow", result="done", after_seconds=0.0)
    assert operator(deferrable=True).execute(context) == "done"


@pytest.mark.usefixtures("connected")
def test_airflows_limit_of_a_deferrable_task(context: Any, emulator: Emulator) -> None:
    """The trigger ends its wait at the `execution_timeout`, which Airflow does not enforce while deferred."""
    emulator.control.script("flow", outcome="never")
    began = time.time()
    task = operator(deferrable=True, inline_wait=0, timeout=None, execution_timeout=timedelta(hours=1))
    trigger: Any = deferral(task, context).trigger
    assert began + 3600 <= trigger.deadline <= time.time() + 3600


@pytest.mark.usefixtures("connected")
def test_a_cancelled_job_may_skip_its_task(context: Any, emulator: Emulator) -> None:
    """With `on_cancelled="skip"`, a job that is cancelled on the Noukai side skips the task."""
    emulator.control.script("flow", outcome="cancelled")
    with pytest.raises(AirflowSkipException):
        operator(on_cancelled="skip").execute(context)


@pytest.mark.usefixtures("connected")
def test_without_xcoms(context: Any, emulator: Emulator) -> None:
    """With `do_xcom_push=False`, nothing is pushed, and the output is still returned."""
    emulator.control.script("flow", result="done")
    assert operator(do_xcom_push=False).execute(context) == "done"
    assert context["ti"].xcoms == {}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, settings: ConnectionSettings) -> Any:
    """A service whose responses the test writes."""
    with RawService() as service:
        monkeypatch.setattr(NoukaiHook, "settings", replace(settings, base_url=service.base_url))
        yield service


@pytest.mark.parametrize(
    ("cancel", "then", "phrase"),
    [
        (ENDED_BEFORE, RUNNING, "not cancelled .already ended"),
        (http(403, {"detail": {"code": "FORBIDDEN", "message": "no"}}), RUNNING, "cancel failed .may still"),
    ],
    ids=["ended meanwhile", "rejected"],
)
def test_a_timeout_says_what_became_of_the_job(
    cancel: bytes, then: bytes, phrase: str, service: RawService, context: Any
) -> None:
    """A job that ended just before its cancel, or whose cancel was rejected, is not called cancelled."""
    service.on("poll", RUNNING).on("cancel", lambda: (service.on("poll", then) and cancel,))
    with pytest.raises(NoukaiJobTimeoutException, match=phrase):
        operator(timeout=0.3).execute(context)


def test_a_job_that_completes_at_its_deadline(service: RawService, context: Any) -> None:
    """A job that has completed just before its cancel gives its result, and the task succeeds."""
    service.on("poll", RUNNING).on("cancel", lambda: (service.on("poll", COMPLETED) and ENDED_BEFORE,))
    assert operator(timeout=0.3).execute(context) == "done"


def test_a_limit_that_strikes_while_the_result_is_delivered(
    context: Any, connected: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow's limit loses no job that has completed: a retry returns its result."""
    emulator.control.script("flow", result="done")
    context["ti"].max_tries = 1
    with monkeypatch.context() as patched:
        patched.setattr(TaskOutput, "deliver", Mock(side_effect=AirflowTaskTimeout))
        with pytest.raises(AirflowTaskTimeout):
            operator(retries=1).execute(context)
    context["ti"].try_number = 2
    assert operator(retries=1).execute(context) == "done"
    assert emulator.control.counts()["submit"] == 1


def test_a_result_that_a_retry_takes_late(
    context: Any, connected: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that completed in time gives its result even if its time is over when a retry attaches to it."""
    monkeypatch.setattr(_wait, "LAST_POLL_SECONDS", 0.0)
    emulator.control.script("flow", outcome="never")
    context["ti"].max_tries = 1
    job_id = operator(wait_for_completion=False).execute(context)
    emulator.control.finish(job_id, result="done")
    context["ti"].try_number = 2
    sent = context["task_state_store"].kept["noukai_job"]
    sent["last_sent_at"] = "2026-01-01T00:00:00+00:00"
    assert operator(timeout=60, retries=1).execute(context) == "done"
    assert emulator.control.counts()["submit"] == 1


def test_a_poll_that_lags_behind_the_triggers(service: RawService, context: Any) -> None:
    """A task whose trigger saw the end waits on if its own poll reaches a replica that lags behind."""
    service.on("poll", RUNNING)
    task = operator(deferrable=True, inline_wait=0)
    deferred = deferral(task, context)
    event = JobEvent("job-1", Reason.FINISHED, state="completed").payload()
    with pytest.raises(TaskDeferred):
        task.resume_execution("execute_complete", deferred.kwargs | {"event": event}, context)
    service.on("poll", COMPLETED)
    assert task.resume_execution("execute_complete", deferred.kwargs | {"event": event}, context) == "done"


@pytest.mark.usefixtures("connected")
def test_an_input_that_fails_before_an_earlier_job_is_looked_for(
    context: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a state store, a last try that cannot make its request names what an earlier try has sent."""
    emulator.control.script("flow", outcome="never")
    del context["task_state_store"]
    context["ti"].max_tries = 1
    operator(wait_for_completion=False, retries=1).execute(context)
    (job,) = emulator.control.jobs()
    context["ti"].try_number = 2
    context["ti"].xcoms.clear()  # as Airflow does when a try begins
    with pytest.raises(NoukaiException, match="output_path"):
        operator(output_path="file:///proc/nowhere/output.json", retries=1).execute(context)
    line = f"Noukai submission {job['session_id']} to {FLOW}: may be left running (interrupted before"
    assert line in caplog.text


def test_an_xcom_that_cannot_be_pushed(
    context: Any, connected: ConnectionSettings, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """The state of a job in an XCom is for people: if Airflow does not take it, the task gets its result."""
    emulator.control.script("flow", result="done")
    push = context["ti"].xcom_push

    def fail(key: str, value: object) -> None:
        if key == "job_status":
            raise RuntimeError("API server unreachable")
        push(key, value)

    context["ti"].xcom_push = fail
    assert operator().execute(context) == "done"
    assert "not recorded (API server unreachable)" in caplog.text


@pytest.mark.parametrize("left", [True, False], ids=["a retry is left", "no retry is left"])
def test_a_connection_that_is_gone_in_a_retry(
    left: bool,
    context: Any,
    connected: ConnectionSettings,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A last try that fails before it has asked for the job of an earlier one names that job."""
    emulator.control.script("flow", outcome="never")
    job_id = operator(wait_for_completion=False).execute(context)
    context["task_state_store"].kept["noukai_job"]["delivered"] = False
    context["ti"].try_number, context["ti"].max_tries = 2, 2 if left else 1
    gone = property(Mock(side_effect=NoukaiException("connection not found")))
    monkeypatch.setattr(NoukaiHook, "settings", gone)
    with pytest.raises(NoukaiException, match="connection not found"):
        operator(retries=2).execute(context)
    line = f"Noukai job {job_id} of {FLOW}: may be left running (the task failed before it asked for its job)"
    assert (line in caplog.text) is not left


@pytest.mark.parametrize("error", [JobNotFoundError, ResponseTooLargeError])
def test_a_job_that_gives_no_result(
    error: type[APIError],
    context: Any,
    connected: ConnectionSettings,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job that the server does not know, or that has ended with too large a result, is not left running."""
    monkeypatch.setattr(_wait.JobWait, "wait", Mock(side_effect=error("no result")))
    with pytest.raises(NoukaiException, match="no result"):
        operator().execute(context)
    assert "left running" not in caplog.text


def test_a_cancel_whose_response_is_lost(service: RawService, context: Any) -> None:
    """A job that the task's own cancel may have ended is replaced by the retry, even if a 409 came last."""
    service.on("poll", RUNNING).on("cancel", ENDED_BEFORE)
    context["ti"].max_tries = 1
    with pytest.raises(NoukaiJobTimeoutException, match="already ended"):
        operator(timeout=0.3, retries=1).execute(context)
    assert context["task_state_store"].kept["noukai_job"]["abandoned"]


def policy(action: str) -> Any:
    """A retry policy that always decides the same."""
    decision = SimpleNamespace(action=SimpleNamespace(value=action))
    return SimpleNamespace(evaluate=lambda *_: decision)


@pytest.mark.parametrize(
    ("action", "try_number", "left"),
    [
        ("fail", 1, False),
        ("retry", 1, True),
        ("retry", 3, False),
        ("default", 1, True),
        ("reschedule", 3, True),
    ],
)
def test_a_retry_policy_decides_whether_a_retry_is_left(action: str, try_number: int, left: bool) -> None:
    """What a task says of its job at its end counts the retries that the task's policy allows."""
    task = operator(retries=2)
    task.__dict__["retry_policy"] = policy(action)
    context: Any = {"ti": FakeTask(try_number=try_number, max_tries=2)}
    assert retry_left(task, context, NoukaiJobFailedException("failed")) is left


def test_a_retry_policy_that_raises() -> None:
    """An error of the task's policy hides none of the job, and retries count as Airflow counts them then."""
    task = operator(retries=2)
    task.__dict__["retry_policy"] = SimpleNamespace(evaluate=Mock(side_effect=ValueError))
    context: Any = {"ti": FakeTask(try_number=1, max_tries=2)}
    assert retry_left(task, context, NoukaiJobFailedException("failed"))


def test_a_kill_before_the_submission() -> None:
    """A task that is killed before it has begun sends nothing, and raises nothing."""
    operator().on_kill()


def test_the_last_try_of_a_job_that_ended_meanwhile(service: RawService, context: Any) -> None:
    """At the last try's end, a job that completed just before its cancel is not called cancelled."""
    service.on("poll", RUNNING)
    service.on(
        "cancel", lambda: (service.on("poll", COMPLETED) and http(409, {"detail": {"code": "ENDED"}}),)
    )
    with pytest.raises(NoukaiJobTimeoutException, match="already completed"):
        operator(timeout=0.3, cancel_on_timeout=False, on_final_failure="cancel").execute(context)
