"""A person stops a run, or its time is over: the remote jobs end with it, in every style of call."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import pytest

from devtools.processes import wait_until

if TYPE_CHECKING:
    from devtools.prefect_server import LocalPrefect
    from noukai_core.emulator import Emulator

FLOWS = Path(__file__).parent / "flows"

# The flows of call_styles.py, with the number of their jobs.
STYLES = {
    "awaited": 1,
    "gathered": 3,
    "called": 1,
    "called_in_async_flow": 1,
    "submitted": 1,
    "async_submitted": 1,
    "mapped": 3,
    "async_mapped": 3,
    "process_mapped": 2,
    "two_steps": 1,
    "async_two_steps": 1,
    "block": 1,
    "async_block": 1,
    "submitted_block": 1,
    "batch": 3,
    "async_batch": 3,
    "submitted_batch": 3,
    "parent": 1,
}
TWO_STEPS = ["two_steps", "async_two_steps", "block", "async_block", "submitted_block"]
SUBMITTING = ["awaited", "called", "submitted", "batch", "async_batch"]
ENDLESS = {"outcome": "never"}

# Prefect kills a run that is still there 30 s after the cancel: what is Cancelled by then was not killed.
CANCELLED_WITHIN = 15.0
NOT_KILLED_WITHIN = 28.0  # for a run that first looks for its jobs, which may take it ten seconds

LIMITED = [
    "limited_awaited",
    "limited_called",
    "limited_submitted",
    "limited_async_submitted",
    "limited_block",
    "deadline",
]
LIMITED_FLOWS = ["limited_flow", "limited_flow_submitted"]
LIMIT = 3.0  # as in timeouts.py
AT_THE_SAME_TIME = 3


def cancel(runs: Any, style: str) -> Any:
    """Cancel a flow run while its jobs run, and wait for its end."""
    run = runs.start(style, script=ENDLESS)
    jobs = run.wait_for_jobs(STYLES[style], "running")
    if style in TWO_STEPS:  # in between nobody waits for the job: that is for the hook
        run.attached_again(jobs)
    run.cancel()
    run.wait_for("Cancelled", timeout=CANCELLED_WITHIN)
    return run


def cancel_while_it_submits(runs: Any, style: str) -> Any:
    """Cancel a flow run whose jobs are there, but whose process does not know it yet."""
    unanswered = {"kind": "slow", "on": "submit", "seconds": 25, "times": STYLES[style]}
    run = runs.start(style, script=ENDLESS, fault=unanswered)
    run.wait_for_jobs(STYLES[style])
    run.cancel()
    run.wait_for("Cancelled", timeout=NOT_KILLED_WITHIN)
    return run


def exceed_the_limit(runs: Any, style: str) -> Any:
    """Let a task run into its time limit, with a Noukai that takes its time to answer the cancel."""
    run = runs.start(style, script=ENDLESS, fault={"kind": "slow", "on": "cancel", "seconds": 2})
    run.wait_for()
    return run


@pytest.fixture(scope="module")
def side_by_side(runs: Any, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Any]]]:
    """The runs of the tests with many styles, by the name of the test; some go on at the same time."""
    stories = {
        **{f"test_cancel[{style}]": (cancel, style) for style in STYLES},
        **{
            f"test_cancel_while_it_submits[{style}]": (cancel_while_it_submits, style) for style in SUBMITTING
        },
        **{f"test_time_limit[{style}]": (exceed_the_limit, style) for style in LIMITED},
        **{f"test_time_limit_of_the_flow[{style}]": (exceed_the_limit, style) for style in LIMITED_FLOWS},
    }
    wanted = {item.name for item in request.session.items if item.path == request.path}
    with ThreadPoolExecutor(AT_THE_SAME_TIME) as pool:
        yield {
            name: pool.submit(story, runs, style)
            for name, (story, style) in stories.items()
            if name in wanted
        }


@pytest.mark.parametrize("style", STYLES)
def test_cancel(side_by_side: Any, request: pytest.FixtureRequest, style: str) -> None:
    """Cancelling a flow run cancels each of its jobs once, and ends the flow run as Cancelled within 15 s."""
    run = side_by_side[request.node.name].result()

    assert [job["state"] for job in run.jobs()] == ["cancelled"] * STYLES[style]
    assert [run.cancels(job["id"]) for job in run.jobs()] == [1] * STYLES[style]
    assert run.submissions() == STYLES[style]


@pytest.mark.parametrize("style", SUBMITTING)
def test_cancel_while_it_submits(side_by_side: Any, request: pytest.FixtureRequest, style: str) -> None:
    """A job whose submission was not answered when its flow run was cancelled is found and cancelled."""
    run = side_by_side[request.node.name].result()

    assert [job["state"] for job in run.jobs()] == ["cancelled"] * STYLES[style]
    assert run.submissions() == STYLES[style]


@pytest.mark.parametrize("style", LIMITED)
def test_time_limit(
    side_by_side: Any, request: pytest.FixtureRequest, prefect: LocalPrefect, style: str
) -> None:
    """A task that exceeds its `timeout_seconds`, or its job's `timeout`, is TimedOut, the job cancelled."""
    run = side_by_side[request.node.name].result()

    assert run.task_states() == ["TimedOut"]
    (job,) = run.jobs()
    assert job["state"] == "cancelled"
    (cancel,) = run.control.requests("cancel", job["id"])
    (task,) = prefect.task_runs(run.id)
    assert cancel["time"] - datetime.fromisoformat(task["start_time"]).timestamp() >= LIMIT
    line = f"INFO Noukai job {job['id']} of {job['flow']}: cancelled"
    wait_until(lambda: line in prefect.logs(run.id), "the line about the cancel", 20)
    if style == "deadline":
        assert "was cancelled" in task["state"]["message"]


@pytest.mark.parametrize("style", LIMITED_FLOWS)
def test_time_limit_of_the_flow(
    side_by_side: Any, request: pytest.FixtureRequest, prefect: LocalPrefect, style: str
) -> None:
    """A flow that exceeds its `timeout_seconds` is TimedOut, and its job cancelled."""
    run = side_by_side[request.node.name].result()

    assert prefect.state(run.id) == "TimedOut"
    (job,) = run.wait_for_jobs(1, "cancelled", timeout=15)  # the state of the flow run comes first
    assert run.cancels(job) == 1


def test_cancel_without_a_cancel_route(runs: Any, prefect: LocalPrefect) -> None:
    """Where Noukai cannot cancel, the flow run ends as Cancelled all the same, and its log names the job."""
    run = runs.start("awaited", script=ENDLESS)
    run.control.fault("no_cancel", on="cancel", times=None, flow=run.flow)
    (job,) = run.wait_for_jobs(1, "running")

    run.cancel()

    assert run.wait_for(timeout=CANCELLED_WITHIN) == "Cancelled"
    warnings = [line for line in prefect.logs(run.id) if line.startswith("WARNING") and job in line]
    assert warnings, prefect.logs(run.id)
    assert run.jobs()[0]["state"] == "running"


class LocalRun:
    """A flow that runs as a script, from a terminal."""

    def __init__(self, prefect: LocalPrefect, emulator: Emulator, style: str, log: Path) -> None:
        self.control = emulator.control
        self.slug = f"local-{style.replace('_', '-')[:30]}-{uuid4().hex[:8]}"
        self.control.script(self.slug, **ENDLESS)
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(FLOWS / "call_styles.py"), style, f"acme/tests/{self.slug}"],
                env=prefect.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def jobs(self) -> list[dict[str, Any]]:
        return [job for job in self.control.jobs() if job["slug"] == self.slug]

    def wait_for_jobs(self, count: int) -> None:
        wait_until(
            lambda: [job["state"] for job in self.jobs()] == ["running"] * count,
            f"{count} running jobs of {self.slug}",
            alive=lambda: None if self.process.poll() is None else pytest.fail(self.log.read_text()),
        )


@pytest.mark.parametrize("style", ["awaited", "gathered", "called", "submitted", "async_mapped", "batch"])
def test_interrupt_of_a_local_run(
    prefect: LocalPrefect, emulator_server: Emulator, tmp_path: Path, style: str
) -> None:
    """One Ctrl-C ends a flow that runs without a deployment within seconds, and its jobs with it."""
    with LocalRun(prefect, emulator_server, style, tmp_path / "log") as run:
        run.wait_for_jobs(STYLES[style])

        run.process.send_signal(signal.SIGINT)

        run.process.wait(timeout=10)
        assert [job["state"] for job in run.jobs()] == ["cancelled"] * STYLES[style]
