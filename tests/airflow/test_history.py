"""How long a task waits for its job on the worker, by how long the last one took."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from noukai_airflow._history import duration, inline_seconds, last_duration
from tests.airflow.conftest import FakeTask


@pytest.mark.parametrize(
    ("last", "seconds"), [(None, 3), (0, 1), (2, 3.5), (8, 11), (13, 15), (13.1, 0), (3600, 0)]
)
def test_how_long_a_job_is_waited_for_on_the_worker(last: float | None, seconds: float) -> None:
    """A little longer than the last one took, within 15 s; not at all if that would be in vain."""
    assert inline_seconds(last, resumes_safely=True) == seconds


@pytest.mark.parametrize(("last", "seconds"), [(None, 3), (0, 15), (8, 15), (13, 15), (13.1, 0)])
def test_how_long_it_is_waited_for_if_a_deferral_takes_longer(last: float | None, seconds: float) -> None:
    """Where a deferred task is resumed late, a job that is known to be short gets the whole 15 s."""
    assert inline_seconds(last, resumes_safely=False) == seconds


class Earlier(FakeTask):
    """A task whose earlier run has pushed something."""

    pushed: Any = None

    def get_previous_ti(self, **_: Any) -> Any:
        return SimpleNamespace(run_id="earlier")

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int, run_id: str | None = None) -> Any:
        assert (task_ids, key, map_indexes, run_id) == ("task", "job_status", -1, "earlier")
        return self.pushed


def of(task: Any) -> float | None:
    context: Any = {"ti": task}
    return last_duration(context)


@pytest.mark.parametrize(
    ("pushed", "expected"),
    [
        ({"duration": 4.2}, 4.2),
        ({"duration": 4}, 4),
        ({"duration": None}, None),
        ({"duration": True}, None),
        ({"duration": "long"}, None),
        ({}, None),
        (None, None),
        ("text", None),
    ],
)
def test_the_duration_of_the_last_job(pushed: Any, expected: float | None) -> None:
    """It is what the task's previous successful run has pushed, if that makes sense."""
    task = Earlier()
    task.pushed = pushed
    assert of(task) == expected


def test_no_earlier_run() -> None:
    """A task that has never succeeded has no last job."""

    class First(FakeTask):
        def get_previous_ti(self, **_: Any) -> None:
            return None

    assert of(First()) is None


def test_an_earlier_run_before_airflow_3_2() -> None:
    """Where Airflow does not tell the task's previous run, it tells the DAG's."""

    class Older(FakeTask):
        def get_previous_dagrun(self, state: str) -> Any:
            assert state == "success"
            return SimpleNamespace(run_id="earlier")

        def xcom_pull(self, **arguments: Any) -> Any:
            return {"duration": 7.0} if arguments["run_id"] == "earlier" else None

    assert of(Older()) == 7


def test_airflow_that_does_not_answer() -> None:
    """An error on the way costs the task nothing."""
    assert of(FakeTask()) is None


@pytest.mark.parametrize(
    ("created_at", "completed_at", "submitted", "expected"),
    [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:02.5Z", None, 2.5),
        ("2026-01-01T00:00:09Z", "2026-01-01T00:00:02Z", None, 0),
        (None, "2026-01-01T00:00:02Z", datetime(2026, 1, 1, tzinfo=UTC), 5),
        ("soon", "later", datetime(2026, 1, 1, tzinfo=UTC), 5),
        ("2026-01-01T00:00:00", "2026-01-01T00:00:02Z", datetime(2026, 1, 1, tzinfo=UTC), 5),
        (None, None, None, None),
    ],
    ids=["by the server", "backwards", "half", "no times", "half a time zone", "unknown"],
)
def test_how_long_a_job_took(
    created_at: str | None, completed_at: str | None, submitted: datetime | None, expected: float | None
) -> None:
    """The server's word counts; without it, the time from the submission until the end was seen."""
    seen = datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC).timestamp()
    assert duration(created_at, completed_at, submitted, seen) == expected
