"""A person cancels a run, or it times out: its jobs are cancelled with it, however the flow calls them."""

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
from tests.e2e_prefect.conftest import WAIT_SECONDS

if TYPE_CHECKING:
    from devtools.prefect_server import LocalPrefect
    from noukai_core.emulator import Emulator

FLOWS = Path(__file__).parent / "flows"

# The flows of call_styles.py, with the number of their jobs.
STYLES = {
    "awaited": 1,
    "unheard": 1,
    "unheard_stream": 3,
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

LIMITED = [
    "limited_awaited",
    "limited_called",
    "limited_submitted",
    "limited_async_submitted",
    "limited_block",
    "deadline",
]
LIMITED_FLOWS = ["limited_flow", "limited_flow_submitted"]
LIMITS = (4.0, 16.0, 64.0)  # in turn, until the machine is quick enough to submit the job within the limit
AT_THE_SAME_TIME = 3


def cancel(runs: Any, style: str) -> Any:
    """Cancel a flow run while its jobs run, and wait until it ends."""
    run = runs.start(style, script=ENDLESS)
    jobs = run.wait_for_jobs(STYLES[style], "running")
    if style in TWO_STEPS:  # a job that nothing waits for yet is cancelled only by the hook
        run.attached_again(jobs)
    run.cancel()
    run.wait_until_cancelled()
    return run


def cancel_while_it_submits(runs: Any, style: str) -> Any:
    """Cancel a flow run whose jobs exist, but whose process does not know that yet."""
    no_response = {"kind": "slow", "on": "submit", "seconds": 25, "times": STYLES[style]}
    run = runs.start(style, script=ENDLESS, fault=no_response)
    run.wait_for_jobs(STYLES[style])
    run.cancel()
    run.wait_until_cancelled()
    return run


def exceed_the_limit(runs: Any, style: str) -> Any:
    """Let a task time out while its job runs, on a Noukai that is slow to cancel.

    A block submits its job in one step and waits for it in another; what strikes in between cancels no job.
    """
    for seconds in LIMITS:
        slow = {"kind": "slow", "on": "cancel", "seconds": 2}
        run = runs.start(style, script=ENDLESS, fault=slow, seconds=seconds)
        run.wait_for()
        if any(style != "limited_block" or run.control.counts(job["id"])["poll"] for job in run.jobs()):
            return run
    raise AssertionError(f"no job of {style} was waited for within {LIMITS[-1]:g} s")


@pytest.fixture(scope="module")
def side_by_side(runs: Any, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Any]]]:
    """The runs of the tests with many styles, by the name of the test. Some run at the same time."""
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
def test_cancel(side_by_side: Any, request: pytest.FixtureRequest, prefect: LocalPrefect, style: str) -> None:
    """Cancelling a flow run cancels each of its jobs once, before Prefect kills the process."""
    run = side_by_side[request.node.name].result()

    assert prefect.state(run.id) == "Cancelled"
    assert [job["state"] for job in run.jobs()] == ["cancelled"] * STYLES[style]
    assert [run.cancels(job["id"]) for job in run.jobs()] == [1] * STYLES[style]
    assert run.submissions() == STYLES[style]


@pytest.mark.parametrize("style", SUBMITTING)
def test_cancel_while_it_submits(
    side_by_side: Any, request: pytest.FixtureRequest, prefect: LocalPrefect, style: str
) -> None:
    """A job whose submission had no response when its flow run was cancelled is found and cancelled."""
    run = side_by_side[request.node.name].result()

    assert prefect.state(run.id) == "Cancelled"
    assert [job["state"] for job in run.jobs()] == ["cancelled"] * STYLES[style]
    assert run.submissions() == STYLES[style]


@pytest.mark.parametrize("style", LIMITED)
def test_time_limit(
    side_by_side: Any, request: pytest.FixtureRequest, prefect: LocalPrefect, style: str
) -> None:
    """A task that exceeds its `timeout_seconds`, or its job's `timeout`, is TimedOut, its job cancelled."""
    run = side_by_side[request.node.name].result()

    assert run.task_states() == ["TimedOut"]
    (job,) = run.jobs()
    assert job["state"] == "cancelled"
    (cancel,) = run.control.requests("cancel", job["id"])
    (task,) = prefect.task_runs(run.id)
    assert (
        cancel["time"] - datetime.fromisoformat(task["start_time"]).timestamp() >= run.parameters["seconds"]
    )
    line = f"INFO Noukai job {job['id']} of {job['flow']}: cancelled ("
    wait_until(
        lambda: any(logged.startswith(line) for logged in prefect.logs(run.id)),
        "the line about the cancel",
        WAIT_SECONDS,
    )
    if style == "deadline":
        assert "was cancelled" in task["state"]["message"]


@pytest.mark.parametrize("style", LIMITED_FLOWS)
def test_time_limit_of_the_flow(
    side_by_side: Any, request: pytest.FixtureRequest, prefect: LocalPrefect, style: str
) -> None:
    """A flow that exceeds its `timeout_seconds` is TimedOut, and its job cancelled."""
    run = side_by_side[request.node.name].result()

    assert prefect.state(run.id) == "TimedOut"
    (job,) = run.wait_for_jobs(1, "cancelled")  # the state of the flow run comes first
    assert run.cancels(job) == 1


def test_cancel_without_a_cancel_route(runs: Any, prefect: LocalPrefect) -> None:
    """If Noukai cannot cancel, the flow run still ends as Cancelled, and its log names the job."""
    run = runs.start("awaited", script=ENDLESS)
    run.control.fault("no_cancel", on="cancel", times=None, flow=run.flow)
    (job,) = run.wait_for_jobs(1, "running")

    run.cancel()

    run.wait_until_cancelled()
    line = f"WARNING Noukai job {job} of acme/tests/{run.flow}: cancel failed ("
    wait_until(
        lambda: any(logged.startswith(line) for logged in prefect.logs(run.id)), "the warning", WAIT_SECONDS
    )
    assert run.jobs()[0]["state"] == "running"


class LocalRun:
    """A flow that runs as a script in a terminal."""

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
            WAIT_SECONDS,
            alive=lambda: None if self.process.poll() is None else pytest.fail(self.log.read_text()),
        )


@pytest.mark.parametrize("style", ["awaited", "gathered", "called", "submitted", "async_mapped", "batch"])
def test_interrupt_of_a_local_run(
    prefect: LocalPrefect, emulator_server: Emulator, tmp_path: Path, style: str
) -> None:
    """One Ctrl-C ends a flow that runs without a deployment, and cancels its jobs."""
    with LocalRun(prefect, emulator_server, style, tmp_path / "log") as run:
        run.wait_for_jobs(STYLES[style])

        run.process.send_signal(signal.SIGINT)

        run.process.wait(timeout=WAIT_SECONDS)
        assert [job["state"] for job in run.jobs()] == ["cancelled"] * STYLES[style]
