"""After a shutdown, a move, a crash or a failed wait, the run attaches to its job and submits no other."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devtools.processes import wait_until
from tests.e2e_prefect.conftest import WAIT_SECONDS

if TYPE_CHECKING:
    from devtools.prefect_server import LocalPrefect

FLOWS = Path(__file__).parent / "flows"

# Flows of call_styles.py and reruns.py, with the number of their jobs; `called` is in test_worker.py.
STYLES = {
    "awaited": 1,
    "submitted": 1,
    "async_mapped": 3,
    "two_steps": 1,
    "block": 1,
    "async_batch": 3,
    "parent": 1,
    "three_the_same": 3,
    "three_the_same_mapped": 3,
}
MOVED = {"awaited": 1, "every_style": 4}
MOVED_FROM = [f"{FLOWS / 'call_styles.py'}:awaited", f"{FLOWS / 'reruns.py'}:every_style"]
IDENTICAL = ["three_the_same", "three_the_same_mapped", "three_the_same_in_turn"]
RETRIED = ["flow_retried", "task_retried"]
AFTER_A_WAIT = [*RETRIED, "parent_retried"]
LOST = {
    "connection dropped": {"kind": "drop_after"},
    "502": {"kind": "status", "status": 502, "takes_effect": True},
}
NOT_RETRIED = {"rejected": {"missing": True}, "cancelled": {"outcome": "cancelled"}}
ENDLESS = {"outcome": "never"}
SHORT = {"after_seconds": 0.5}
WAITS = (4.0, 16.0, 64.0)  # in turn, until the machine is quick enough to end the job within the second wait
AT_THE_SAME_TIME = 3
PAUSE = 30.0


def finish(run: Any, jobs: list[str]) -> None:
    """Wait until each job is polled again, and complete the jobs."""
    run.attached_again(jobs)
    for job in jobs:
        run.control.finish(job)


def kill_and_retry(runs: Any, style: str) -> Any:
    """Kill the process of a flow run while it waits, run it again, and let it end."""
    run = runs.start(style, script=ENDLESS)
    jobs = run.wait_for_jobs(STYLES[style], "running")
    os.kill(runs.prefect.flow_run_process(run.id), signal.SIGKILL)
    run.wait_for("Crashed")
    runs.prefect.retry(run.id)
    run.wait_for("Running", "Retrying")
    finish(run, jobs)
    run.wait_for()
    return run


def kill_while_it_submits(runs: Any, style: str) -> Any:
    """Kill the process of a flow run before its submission has a response, and run it again."""
    run = runs.start(style, script=ENDLESS, fault={"kind": "slow", "on": "submit", "seconds": WAIT_SECONDS})
    jobs = run.wait_for_jobs(1)
    os.kill(runs.prefect.flow_run_process(run.id), signal.SIGKILL)
    run.wait_for("Crashed")
    runs.prefect.retry(run.id)
    finish(run, jobs)
    run.wait_for()
    return run


def time_out_once(runs: Any, style: str) -> Any:
    """Let the first wait time out, and the job end with the second, which is as short."""

    def second_attempt() -> bool:
        tasks = runs.prefect.task_runs(run.id)
        return bool(runs.prefect.flow_run(run.id)["run_count"] == 2 or (tasks and tasks[0]["run_count"] == 2))

    for seconds in WAITS:
        run = runs.start(style, script=ENDLESS, timeout=seconds)
        jobs = run.wait_for_jobs(1)
        wait_until(second_attempt, f"a second attempt of {style}", WAIT_SECONDS)
        for job in jobs:
            run.control.finish(job)
        if run.wait_for() == "Completed":
            break
    return run


def let_it_end(runs: Any, style: str, **options: Any) -> Any:
    """Run a flow to its end."""
    run = runs.start(style, **options)
    run.wait_for()
    return run


@pytest.fixture(scope="module")
def side_by_side(runs: Any, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Any]]]:
    """The runs of most tests, by the name of the test. Some run at the same time."""
    bad = {"outcome": "failed", "error": "no luck", "after_seconds": 0.5}
    stories: dict[str, tuple[Callable[..., Any], str, dict[str, Any]]] = {
        **{f"test_process_killed[{style}]": (kill_and_retry, style, {}) for style in STYLES},
        "test_killed_while_it_submits": (kill_while_it_submits, "awaited", {}),
        **{
            f"test_response_to_the_submission_lost[{how}]": (
                let_it_end,
                "awaited",
                {"script": SHORT, "fault": {"on": "submit", **fault}},
            )
            for how, fault in LOST.items()
        },
        **{
            f"test_retry_after_a_wait_that_failed[{style}]": (time_out_once, style, {})
            for style in AFTER_A_WAIT
        },
        **{
            f"test_retry_after_a_job_that_failed[{style}]": (let_it_end, style, {"script": bad})
            for style in [*RETRIED, "both_retried"]
        },
        **{
            f"test_identical_submissions[{style}]": (let_it_end, style, {"script": SHORT})
            for style in IDENTICAL
        },
        **{
            f"test_not_retried[{how}]": (let_it_end, "task_retried", {"script": script})
            for how, script in NOT_RETRIED.items()
        },
        "test_nothing_bad_is_cached": (let_it_end, "cancelled_twice", {"script": {"outcome": "cancelled"}}),
        "test_two_credentials": (let_it_end, "two_credentials", {"script": SHORT}),
        "test_no_task_run_for_a_poll": (let_it_end, "awaited", {"script": {"after_polls": 4}}),
    }
    wanted = {item.name for item in request.session.items if item.path == request.path}
    with ThreadPoolExecutor(AT_THE_SAME_TIME) as pool:
        yield {
            name: pool.submit(story, runs, style, **options)
            for name, (story, style, options) in stories.items()
            if name in wanted
        }


@pytest.fixture
def run(side_by_side: dict[str, Future[Any]], request: pytest.FixtureRequest) -> Any:
    """The run of this test, when it has ended."""
    return side_by_side[request.node.name].result()


@pytest.mark.parametrize("style", STYLES)
def test_process_killed(run: Any, prefect: LocalPrefect, style: str) -> None:
    """When the flow run of a killed process is retried, it attaches to its jobs; each was submitted once."""
    assert prefect.state(run.id) == "Completed"
    assert run.submissions() == STYLES[style]
    assert [job["state"] for job in run.jobs()] == ["completed"] * STYLES[style]
    assert [run.cancels(job["id"]) for job in run.jobs()] == [0] * STYLES[style]


def test_killed_while_it_submits(run: Any, prefect: LocalPrefect) -> None:
    """A process that dies before the response to its submission leaves one job, which the rerun finds."""
    assert prefect.state(run.id) == "Completed"
    assert run.submissions() == 1
    assert [job["state"] for job in run.jobs()] == ["completed"]


@pytest.mark.parametrize("how", LOST)
def test_response_to_the_submission_lost(run: Any, prefect: LocalPrefect, how: str) -> None:
    """If the response to a submission is lost, the task waits for the job that the submission created."""
    assert prefect.state(run.id) == "Completed"
    assert run.submissions() == 1
    assert [job["state"] for job in run.jobs()] == ["completed"]


@pytest.mark.parametrize("style", AFTER_A_WAIT)
def test_retry_after_a_wait_that_failed(run: Any, prefect: LocalPrefect, style: str) -> None:
    """A retry after a failed wait attaches to the same job, whether the task or a flow is retried."""
    assert prefect.state(run.id) == "Completed"
    assert run.submissions() == 1
    assert [job["state"] for job in run.jobs()] == ["completed"]


@pytest.mark.parametrize(
    ("style", "jobs"),
    [("flow_retried", 2), ("task_retried", 2), ("both_retried", 4)],
    ids=[*RETRIED, "both_retried"],
)
def test_retry_after_a_job_that_failed(run: Any, prefect: LocalPrefect, style: str, jobs: int) -> None:
    """Each retry after a failed job submits a new job."""
    assert prefect.state(run.id) == "Failed"
    assert run.submissions() == jobs
    assert [job["state"] for job in run.jobs()] == ["failed"] * jobs
    assert len({job["session_id"] for job in run.jobs()}) == jobs


@pytest.mark.parametrize("style", IDENTICAL)
def test_identical_submissions(run: Any, prefect: LocalPrefect, style: str) -> None:
    """Three identical submissions in one flow run are three jobs, even if results are persisted."""
    assert prefect.state(run.id) == "Completed"
    assert prefect.result(run.id) == [{"message": "the same"}] * 3
    assert run.submissions() == 3
    assert len({job["session_id"] for job in run.jobs()}) == 3


@pytest.mark.parametrize("how", NOT_RETRIED)
def test_not_retried(run: Any, prefect: LocalPrefect, how: str) -> None:
    """A task retry submits no new job after a permanent error or a cancelled job."""
    assert prefect.state(run.id) == "Failed"
    assert run.task_states() == ["Failed"]
    assert run.submissions() == 1


def test_nothing_bad_is_cached(run: Any, prefect: LocalPrefect) -> None:
    """A task run that ended as Cancelled is not replayed, even if results are persisted by default."""
    assert prefect.result(run.id) == ["Cancelled", "Cancelled"]
    assert run.submissions() == 2


def test_two_credentials(run: Any, prefect: LocalPrefect) -> None:
    """The same submission with two keys of one server is two jobs."""
    assert prefect.state(run.id) == "Completed"
    assert run.submissions() == 2
    assert len({job["session_id"] for job in run.jobs()}) == 2


def test_no_task_run_for_a_poll(run: Any, prefect: LocalPrefect) -> None:
    """A job is one task run, however often it is polled."""
    assert prefect.state(run.id) == "Completed"
    assert run.task_states() == ["Completed"]
    assert run.control.counts(run.jobs()[0]["id"])["poll"] == 4


def machine(home: Path, storage: Path | None = None) -> dict[str, str]:
    """Return the settings of a process on a new machine, with its own or a shared results folder."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(storage or home / "storage"),
        "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
    }


@pytest.mark.parametrize(("style", "jobs"), [("reads_its_record", 1), ("batch_reads_its_record", 2)])
def test_cancel_while_a_rerun_reads_its_record(runs: Any, tmp_path: Path, style: str, jobs: int) -> None:
    """Cancelling a rerun cancels the jobs of the attempt before, even if it does not know them yet."""
    reading = tmp_path / "reading"
    run = runs.start(style, script=ENDLESS, reading=str(reading))
    run.wait_for_jobs(jobs, "running")
    os.kill(runs.prefect.flow_run_process(run.id), signal.SIGKILL)
    run.wait_for("Crashed")
    runs.prefect.retry(run.id)
    wait_until(reading.exists, f"{style} to read its record", WAIT_SECONDS)
    run.cancel()
    run.wait_until_cancelled()
    assert [job["state"] for job in run.jobs()] == ["cancelled"] * jobs
    assert run.submissions() == jobs


@pytest.mark.parametrize(("style", "count"), [("first_times_out", 1), ("first_batch_times_out", 2)])
def test_deadline_of_a_process_that_was_taken_for_dead(
    runs: Any, prefect: LocalPrefect, style: str, count: int
) -> None:
    """The deadline of a first attempt whose machine was paused does not end the jobs of the second one."""
    pool = style.replace("_", "-")
    prefect.deploy(f"{FLOWS / 'reruns.py'}:{style}", pool=pool)
    run = runs.start(style, deployment=pool, script=ENDLESS, timeout=PAUSE)
    first = prefect.execute(run.id)
    jobs = run.wait_for_jobs(count, "running")
    (paused,) = prefect.flow_run_processes(run.id)
    os.kill(paused, signal.SIGSTOP)
    over = time.monotonic() + PAUSE
    prefect.mark(run.id, "CRASHED")
    prefect.retry(run.id)
    second = prefect.execute(run.id)
    run.attached_again(jobs)
    wait_until(lambda: time.monotonic() > over, "the deadline of the first attempt", WAIT_SECONDS)
    os.kill(paused, signal.SIGCONT)
    wait_until(lambda: not first.running, "the end of the first attempt", WAIT_SECONDS)
    assert [run.cancels(job) for job in jobs] == [0] * count
    assert [job["state"] for job in run.jobs()] == ["running"] * count
    prefect.kill(second)


@pytest.mark.parametrize("end", ["shut down", "lost"])
def test_machine_gone(runs: Any, prefect: LocalPrefect, tmp_path: Path, end: str) -> None:
    """When a machine is shut down or lost, a machine that shares nothing with it takes over the run's jobs.

    It needs neither storage nor home, since the records of the jobs are on Prefect's server.
    """
    name = end.replace(" ", "-")
    first = prefect.serve(*MOVED_FROM, name=name, environment=machine(tmp_path / "first"))
    started = [runs.start(style, deployment=name, script=ENDLESS) for style in MOVED]
    jobs = [run.wait_for_jobs(count, "running") for run, count in zip(started, MOVED.values(), strict=True)]

    if end == "lost":
        prefect.kill(first)
    else:
        prefect.end(first)

    assert {job["state"] for run in started for job in run.jobs()} == {"running"}
    assert {run.cancels(job["id"]) for run in started for job in run.jobs()} == {0}
    second = prefect.serve(*MOVED_FROM, name=name, environment=machine(tmp_path / "second"))
    for run in started:
        if prefect.state(run.id) == "Running":  # no process was left to report the crash
            prefect.mark(run.id, "CRASHED")
        prefect.retry(run.id)
    for run, ids in zip(started, jobs, strict=True):
        finish(run, ids)
        assert run.wait_for() == "Completed"
        assert run.submissions() == len(ids)
    prefect.end(second)


def test_eviction_with_rescheduling(runs: Any, prefect: LocalPrefect, tmp_path: Path) -> None:
    """Containers that are evicted and rescheduled leave their jobs running, and the next ones attach to them.

    They share nothing, except the result storage if the input of a job is the result of a task.
    """
    prefect.deploy(*MOVED_FROM, pool="containers")
    started = {
        "awaited": runs.start("awaited", deployment="containers", script=ENDLESS),
        "every_style": runs.start("every_style", deployment="containers", script=ENDLESS, prepared=True),
    }
    shared = {"every_style": tmp_path / "shared"}

    def container(style: str, number: int) -> Any:
        settings = machine(tmp_path / f"{style}-{number}", shared.get(style))
        return prefect.execute(started[style].id, environment=settings)

    evicted = {style: container(style, 1) for style in started}
    jobs = {style: run.wait_for_jobs(MOVED[style], "running") for style, run in started.items()}
    for style, process in evicted.items():
        prefect.end(process)
        assert started[style].wait_for("AwaitingRetry") == "AwaitingRetry"
        assert [job["state"] for job in started[style].jobs()] == ["running"] * MOVED[style]

    for style in started:
        container(style, 2)
    for style, run in started.items():
        finish(run, jobs[style])
        assert run.wait_for() == "Completed"
        assert run.submissions() == MOVED[style]
        assert [run.cancels(job) for job in jobs[style]] == [0] * MOVED[style]
