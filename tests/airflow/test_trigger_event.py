"""The events with which triggers resume tasks."""

from __future__ import annotations

import json

import pytest

from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_core import JobState


@pytest.mark.parametrize("reason", list(Reason))
def test_an_event_survives_its_passage_through_airflow(reason: Reason) -> None:
    """A task reads what a trigger yields."""
    event = JobEvent("job-1", reason, "running", 1764115200.5, 3)
    assert JobEvent.read(json.loads(json.dumps(event.payload()))) == event


def test_an_event_is_stored_without_a_class_of_ours() -> None:
    """Airflow stores an event as plain values, so that another version of this package can read it."""
    try:
        from airflow.sdk.serde import deserialize, serialize
    except ImportError:  # before Airflow 3.2
        from airflow.serialization.serde import deserialize, serialize

    payload = JobEvent("job-1", Reason.FINISHED, JobState.COMPLETED, 1764115200.5).payload()
    assert {type(value) for value in payload.values()} == {int, str, float}
    stored = serialize(payload)
    assert "noukai" not in json.dumps(stored)
    read = deserialize(stored)
    assert {type(value) for value in read.values()} == {int, str, float}
    assert read["state"] == "completed"


def test_an_event_holds_only_ids_and_states() -> None:
    """No event carries a result, a message or any other value of unknown size."""
    assert set(JobEvent("job-1", Reason.FINISHED, "completed").payload()) == {
        "version",
        "job_id",
        "reason",
        "state",
        "seen_at",
        "logged_steps",
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
def test_a_malformed_event(event: object) -> None:
    """What none of our triggers can have written is ignored."""
    assert JobEvent.read(event) is None


def test_an_event_of_another_version() -> None:
    """Additional fields are ignored, and missing ones have defaults."""
    assert JobEvent.read({"job_id": "job-1", "reason": "finished", "more": 1}) == JobEvent(
        "job-1", Reason.FINISHED
    )
