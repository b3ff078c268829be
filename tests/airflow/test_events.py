"""What triggers tell tasks."""

from __future__ import annotations

import json

import pytest

from noukai_airflow.events import JobEvent, Reason


@pytest.mark.parametrize("reason", list(Reason))
def test_an_event_survives_the_way_through_airflow(reason: Reason) -> None:
    """What a trigger yields, a task reads."""
    event = JobEvent("job-1", reason, "running")
    assert JobEvent.read(json.loads(json.dumps(event.payload()))) == event


def test_an_event_holds_ids_and_states_alone() -> None:
    """No event carries a result, a message or anything else of unknown size."""
    assert set(JobEvent("job-1", Reason.FINISHED, "completed").payload()) == {
        "version",
        "job_id",
        "reason",
        "state",
    }


@pytest.mark.parametrize(
    "event",
    [
        None,
        "success",
        "failed",
        7,
        [],
        {},
        {"job_id": ""},
        {"job_id": 7, "reason": "finished"},
        {"job_id": "job-1"},
        {"job_id": "job-1", "reason": "exploded"},
        {"job_id": "job-1", "reason": None},
        {"job_id": "job-1", "reason": ["finished"]},
    ],
)
def test_an_event_that_makes_no_sense(event: object) -> None:
    """What no trigger of ours has written is not believed."""
    assert JobEvent.read(event) is None


def test_an_event_of_another_version() -> None:
    """An event with more or fewer fields is read as far as it goes."""
    assert JobEvent.read({"job_id": "job-1", "reason": "finished", "more": 1}) == JobEvent(
        "job-1", Reason.FINISHED
    )
