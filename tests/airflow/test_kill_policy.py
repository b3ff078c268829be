"""Who ended a task: a user, or a shutdown of its process."""

from __future__ import annotations

import pytest

from noukai_airflow import _kill_policy
from noukai_airflow._kill_policy import KillDecision


@pytest.mark.parametrize(
    "state", ["failed", "success", "restarting", "skipped", "removed", "upstream_failed", None]
)
def test_a_user_ended_the_task_on_the_worker(state: str | None) -> None:
    """If the task's state shows that a user, or a rule of the DAG, ended it, its job is cancelled."""
    assert _kill_policy.decide_on_worker(state, known=True) is KillDecision.CANCEL


@pytest.mark.parametrize(
    "state", ["running", "up_for_retry", "up_for_reschedule", "scheduled", "queued", "deferred"]
)
def test_only_the_worker_stops(state: str) -> None:
    """If the task continues, in this try or in the next, the job is left running."""
    assert _kill_policy.decide_on_worker(state, known=True) is KillDecision.KEEP


def test_an_unknown_state_keeps_the_job() -> None:
    """If Airflow does not return the state, nothing is cancelled: only a user's act cancels a paid job."""
    assert _kill_policy.decide_on_worker(None, known=False) is KillDecision.KEEP


@pytest.mark.parametrize(
    ("state", "job_of_task", "expected"),
    [
        ("failed", "mine", KillDecision.CANCEL),
        ("success", "mine", KillDecision.CANCEL),
        (None, "mine", KillDecision.CANCEL),
        ("scheduled", "mine", KillDecision.UNDECIDED),
        ("scheduled", "another", KillDecision.CANCEL),
        ("queued", "mine", KillDecision.UNDECIDED),
        ("queued", None, KillDecision.CANCEL),
        ("deferred", "mine", KillDecision.KEEP),
        ("deferred", "another", KillDecision.CANCEL),
        ("deferred", None, KillDecision.KEEP),
        ("running", "mine", KillDecision.KEEP),
        ("running", "another", KillDecision.CANCEL),
        ("running", None, KillDecision.CANCEL),
        ("up_for_retry", "mine", KillDecision.KEEP),
    ],
)
def test_on_kill_of_a_trigger(state: str | None, job_of_task: str | None, expected: KillDecision) -> None:
    """A trigger keeps the job of a task that still waits for it, and cancels it otherwise.

    A task on its way to a worker may have been resumed by another triggerer, or cleared by a user.
    """
    assert _kill_policy.decide_in_triggerer(state, job_of_task, "mine") is expected


@pytest.mark.parametrize(
    ("state", "job_of_task", "expected"),
    [
        ("failed", "mine", KillDecision.CANCEL),
        ("success", "mine", KillDecision.CANCEL),
        ("skipped", None, KillDecision.CANCEL),
        (None, None, KillDecision.UNDECIDED),
        ("queued", None, KillDecision.UNDECIDED),
        ("running", None, KillDecision.UNDECIDED),
        ("running", "mine", KillDecision.KEEP),
        ("running", "another", KillDecision.CANCEL),
        ("deferred", "mine", KillDecision.KEEP),
        ("deferred", None, KillDecision.KEEP),
    ],
)
def test_on_kill_after_a_users_act(
    state: str | None, job_of_task: str | None, expected: KillDecision
) -> None:
    """Where only a user's act leads to `on_kill`, the job is kept if the new try attached to it."""
    assert _kill_policy.decide_after_user_action(state, job_of_task, "mine") is expected


def test_a_clear_that_keeps_the_state_on_a_worker() -> None:
    """The job of a running task that is cleared is kept when the user keeps the task's state."""
    assert _kill_policy.decide_on_worker("restarting", known=True, kept=True) is KillDecision.KEEP
    assert _kill_policy.decide_on_worker("failed", known=True, kept=True) is KillDecision.CANCEL


@pytest.mark.parametrize(
    ("map_index", "expected"),
    [(-1, "running"), (0, "failed"), (3, None)],
    ids=["unmapped", "mapped", "absent"],
)
def test_finding_a_task_in_airflows_response(map_index: int, expected: str | None) -> None:
    """Airflow names mapped tasks by their index, and omits unknown tasks."""
    response = {"run": {"task": "running", "task_0": "failed", "other": "success"}}
    assert _kill_policy.state_of(response, "run", "task", map_index) == expected


def test_a_run_that_was_deleted() -> None:
    """A run that is not in the response has no state."""
    assert _kill_policy.state_of({}, "run", "task", -1) is None
