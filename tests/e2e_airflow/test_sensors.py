"""The sensor in its three modes, with the same outcome and return value in each.

All runs are started at once; each test checks its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e_airflow.conftest import Run, Runs

MODES = {"sensor_poke": "running", "sensor_reschedule": "up_for_reschedule", "sensor_deferred": "deferred"}
"""The state in which a sensor waits, by its mode."""


@pytest.fixture(scope="module")
def started(runs: Runs) -> dict[str, dict[str, Run]]:
    """Runs of each mode: their job completes, it fails, or it outlasts the sensors."""
    failed = {"outcome": "failed", "error": "overloaded"}
    return {
        "completed": {mode: runs.start(mode, outcome="never") for mode in MODES},
        "failed": {mode: runs.start(mode, after_seconds=10, **failed) for mode in MODES},
        "timed out": {mode: runs.start(f"{mode}_timeout", outcome="never") for mode in MODES},
    }


@pytest.fixture(scope="module")
def completed(started: dict[str, dict[str, Run]]) -> dict[str, Run]:
    """A run of each mode whose job completes while the sensor waits."""
    for mode, run in started["completed"].items():
        run.wait_for(MODES[mode])
        run.control.finish(run.job()["id"], result={"answer": 42})
    return started["completed"]


@pytest.mark.parametrize("mode", MODES)
def test_completed(completed: dict[str, Run], mode: str) -> None:
    """The sensor succeeds when the job completes, and returns its output. It cancels nothing."""
    run = completed[mode]
    assert run.wait_for_own_end() == "success"
    assert run.xcom() == {"answer": 42}
    assert run.xcom("job_status")["state"] == "completed"
    assert (run.submissions(), run.cancels(run.job()["id"])) == (1, 0)


@pytest.mark.parametrize("mode", MODES)
def test_failed(started: dict[str, dict[str, Run]], mode: str) -> None:
    """If the job fails, the sensor fails, is skipped with `soft_fail`, or succeeds if that is allowed."""
    run = started["failed"][mode]
    assert run.wait_for_own_end() == "failed"
    assert "overloaded" in run.logs()
    assert run.wait_for_own_end("soft") == "skipped"
    assert run.wait_for_own_end("any") == "success"
    assert run.xcom("job_status", task_id="any")["state"] == "failed"


@pytest.mark.parametrize("mode", MODES)
def test_timeout(started: dict[str, dict[str, Run]], mode: str) -> None:
    """At its timeout the sensor fails, or is skipped with `soft_fail`; the job is left running."""
    run = started["timed out"][mode]
    assert run.wait_for_own_end() == "failed"
    assert run.wait_for_own_end("soft") == "skipped"
    assert (run.submissions(), run.cancels(run.job()["id"])) == (1, 0)


@pytest.mark.parametrize("mode", MODES)
def test_only_the_deferrable_sensor_defers(completed: dict[str, Run], mode: str) -> None:
    """Only the deferrable sensor waits in the triggerer."""
    run = completed[mode]
    run.wait_for_own_end()
    assert ("DEFERRED" in run.logs()) == (mode == "sensor_deferred")
