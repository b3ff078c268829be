"""What triggers tell tasks."""

from __future__ import annotations

import json

import pytest

from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_core import JobState


@pytest.mark.parametrize("reason", list(Reason))
def test_an_event_survives_the_way_through_airflow(reason: Reason) -> None:
    """What a trigger yields, a task reads."""
    event = JobEvent("job-1", reason, "running")
    assert JobEvent.read(json.loads(json.dumps(event.payload()))) == event


def test_an_event_is_stored_without_a_class_of_ours() -> None:
    """What Airflow stores of an event is plain text, so it can be read also when this package has changed."""
    try:
        from airflow.sdk.serde import deserialize, serialize
    except ImportError:  # before Airflow 3.2
        from airflow.serialization.serde import deserialize, serialize

    payload = JobEvent("job-1", Reason.FINISHED, JobState.COMPLETED).payload()
    assert {type(value) for value in payload.values()} == {int, str}
    stored = serialize(payload)
    assert "noukai" not in json.dumps(stored)
    read = deserialize(stored)
    assert {type(value) for value in read.values()} == {int, str}
    assert read["state"] == "completed"


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
