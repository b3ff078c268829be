"""The steps of jobs in the logs of tasks: on workers, in triggerers, and when their stream fails.

All runs are started at once; each test checks its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from devtools.processes import wait_until

if TYPE_CHECKING:
    from tests.e2e_airflow.conftest import Run, Runs

# A busy scheduler may fail a task that is resumed sooner after its deferral: see test_states.py.
UNHURRIED = 10.0
STEPS = [{"stepId": f"s{number}"} for number in range(4)]
SHOWN = [f"step s{number} {what}" for number in range(4) for what in ("started", "completed")]
FAULTS: dict[str, dict[str, Any]] = {
    "end": {"kind": "stream", "then": "end", "after": 3},
    "stall": {"kind": "stream", "then": "stall", "after": 3},
    "repeat": {"kind": "stream", "then": "repeat", "times": None},
    "huge": {"kind": "stream", "then": "huge", "after": 3},
    "refused": {"kind": "status", "on": "stream", "status": 403, "times": None},
}


@pytest.fixture(scope="module")
def started(runs: Runs) -> dict[str, Run]:
    """A run for each test."""
    script = {"steps": STEPS, "after_seconds": UNHURRIED, "result": 7}

    def faulty(name: str) -> Run:
        run = runs.prepare("followed", **script | {"outcome": "never"})
        run.control.fault(flow=run.flow, **FAULTS[name])
        return run.start()

    return {
        "deferred": runs.start("followed", **script),
        "waiting": runs.start("followed_waiting", **script | {"after_seconds": 4}),
        "silent": runs.start("followed_not", **script),
        "failed": runs.start("followed", **script, outcome="failed"),
        **{name: faulty(name) for name in FAULTS},
    }


def steps_of(run: Run) -> list[str]:
    """What the log of the task says of steps, in its order, without what they used."""
    return re.findall(r"step s\d \w+", run.logs())


@pytest.mark.parametrize("name", ["deferred", "waiting"])
def test_each_step_is_logged_once(started: dict[str, Run], name: str) -> None:
    """Each step is logged once, by the worker until the task defers, and by the triggerer after that."""
    run = started[name]
    run.wait_for("success")
    assert run.xcom() == 7
    assert steps_of(run) == SHOWN
    assert re.search(r"step s0 completed after \d.* \(model emulator, 12 tokens, \$0.00012\)", run.logs())


def test_the_steps_of_a_failed_job(started: dict[str, Run]) -> None:
    """The log of a task whose job failed has the steps up to the one that failed."""
    run = started["failed"]
    run.wait_for("failed")
    assert steps_of(run) == [*SHOWN[:-1], "step s3 failed"]


def test_a_silent_task(started: dict[str, Run]) -> None:
    """With `None`, the log has the submission and the end, and no state in between."""
    run = started["silent"]
    run.wait_for("success")
    assert run.said("submitted") == 1
    assert run.said("→ completed") == 1
    assert run.said("→ running") == run.said("pending") == 0


@pytest.mark.parametrize("name", FAULTS)
def test_the_stream_changes_nothing(started: dict[str, Run], name: str) -> None:
    """Whatever becomes of the stream, the task ends with the job's output, and no step is logged twice."""
    run = started[name]

    def followed() -> bool:
        return run.said("steps not followed") >= 1 if name == "refused" else len(steps_of(run)) >= 2

    wait_until(followed, "the steps in the log")
    run.control.finish(run.job()["id"], result=7)
    run.wait_for("success")
    assert run.xcom() == 7
    lines = steps_of(run)
    if name == "refused":
        assert lines == []
        # Once in the triggerer, and once on the worker, if it has heard so before it defers.
        assert run.said("steps not followed") in (1, 2)
    else:
        assert lines == [line for line in SHOWN if line in lines]
    assert run.submissions() == 1
