"""The steps of jobs in the logs of flow runs, in every call style, and when their stream fails.

All runs are started at once; each test checks its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from devtools.processes import wait_until
from tests.e2e_prefect.conftest import WAIT_SECONDS

if TYPE_CHECKING:
    from devtools.prefect_server import LocalPrefect
    from tests.e2e_prefect.conftest import Run, Runs

STEPS = [{"stepId": f"s{number}"} for number in range(4)]
SHOWN = [f"step s{number} {what}" for number in range(4) for what in ("started", "completed")]
SCRIPT: dict[str, Any] = {"steps": STEPS, "after_seconds": 6, "result": 7}
FAULTS: dict[str, dict[str, Any]] = {
    "end": {"kind": "stream", "then": "end", "after": 3},
    "stall": {"kind": "stream", "then": "stall", "after": 3},
    "repeat": {"kind": "stream", "then": "repeat", "times": None},
    "huge": {"kind": "stream", "then": "huge", "after": 3},
    "refused": {"kind": "status", "on": "stream", "status": 403, "times": None},
}


@pytest.fixture(scope="module")
def started(runs: Runs) -> dict[str, Run]:
    """One flow run for each test."""

    def faulty(name: str) -> Run:
        return runs.start("followed", script=SCRIPT, fault=FAULTS[name])

    return {
        "async": runs.start("followed", script=SCRIPT),
        "thread": runs.start("followed_in_thread", script=SCRIPT),
        "block": runs.start("followed_block", script=SCRIPT),
        "silent": runs.start("followed", script=SCRIPT, follow=None),
        **{name: faulty(name) for name in FAULTS},
    }


def lines_of(run: Run, prefect: LocalPrefect) -> list[str]:
    """What the log of a completed run says of its job."""
    assert run.wait_for() == "Completed"
    about = f" of acme/tests/{run.flow}: "

    def lines() -> list[str]:
        return [line.partition(about)[2] for line in prefect.logs(run.id) if about in line]

    wait_until(lambda: any(line.endswith("completed") for line in lines()), "the last line", WAIT_SECONDS)
    return lines()


@pytest.mark.parametrize("name", ["async", "thread", "block"])
def test_each_step_is_logged_once(started: dict[str, Run], prefect: LocalPrefect, name: str) -> None:
    """Each step is logged once, beside the states, in every call style."""
    lines = lines_of(started[name], prefect)
    assert [" ".join(line.split()[:3]) for line in lines if line.startswith("step ")] == SHOWN
    assert any(re.search(r"\(model emulator, 12 tokens, \$0.00012\)$", line) for line in lines)


def test_a_silent_run(started: dict[str, Run], prefect: LocalPrefect) -> None:
    """With `None`, the log has the submission and the end, and no state in between."""
    lines = [line for line in lines_of(started["silent"], prefect) if not line.startswith("page ")]
    assert lines[0] == "submitted"
    assert lines[1].endswith("completed")
    assert len(lines) == 2


@pytest.mark.parametrize("name", FAULTS)
def test_the_stream_changes_nothing(started: dict[str, Run], prefect: LocalPrefect, name: str) -> None:
    """Whatever becomes of the stream, the run ends with the job's output, and no step is logged twice."""
    run = started[name]
    lines = lines_of(run, prefect)
    steps = [" ".join(line.split()[:3]) for line in lines if line.startswith("step ")]
    assert steps == ([] if name == "refused" else [line for line in SHOWN if line in steps])
    assert sum(line.startswith("steps not followed (") for line in lines) == (name == "refused")
    assert run.submissions() == 1
