"""Who ended a task: a person, or only its process."""

from __future__ import annotations

import pytest

from noukai_airflow import _kill_policy
from noukai_airflow._kill_policy import KillDecision


@pytest.mark.parametrize(
    "state", ["failed", "success", "restarting", "skipped", "removed", "upstream_failed", None]
)
def test_a_person_ended_the_task_on_the_worker(state: str | None) -> None:
    """When the task's state says that a person, or a rule of the DAG, ended it, its job is cancelled."""
    assert _kill_policy.decide_on_worker(state, known=True) is KillDecision.CANCEL


@pytest.mark.parametrize(
    "state", ["running", "up_for_retry", "up_for_reschedule", "scheduled", "queued", "deferred"]
)
def test_only_the_worker_ends(state: str) -> None:
    """When the task lives on, here or in its next try, the job is kept."""
    assert _kill_policy.decide_on_worker(state, known=True) is KillDecision.KEEP


def test_an_unknown_state_keeps_the_job() -> None:
    """When Airflow does not tell the state, nothing is cancelled: only a person's act cancels a paid job."""
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

    A task on its way to a worker may have been woken by another triggerer, or cleared by a person.
    """
    assert _kill_policy.decide_in_triggerer(state, job_of_task, "mine") is expected


@pytest.mark.parametrize(
    ("map_index", "expected"),
    [(-1, "running"), (0, "failed"), (3, None)],
    ids=["unmapped", "mapped", "absent"],
)
def test_finding_a_task_in_airflows_response(map_index: int, expected: str | None) -> None:
    """Airflow names mapped tasks by their index, and leaves out those that it does not know."""
    response = {"run": {"task": "running", "task_0": "failed", "other": "success"}}
    assert _kill_policy.state_of(response, "run", "task", map_index) == expected


def test_a_run_that_is_gone() -> None:
    """A run that is not in the answer has no state."""
    assert _kill_policy.state_of({}, "run", "task", -1) is None
