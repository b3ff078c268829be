"""What happens to a task, for every way in which a job can end.

All runs are started at once; each test checks its own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devtools.processes import wait_until
from tests.e2e_airflow.conftest import AIRFLOW, NOTIFIES_TRIGGERS

if TYPE_CHECKING:
    from tests.e2e_airflow.conftest import Run, Runs

# A busy scheduler may fail a task that is resumed within a few seconds of its deferral: it takes the end of
# the first segment for that of the second ("finished with state success, but the task instance's state is
# queued"). A trigger waits for that, but only briefly with the heartbeat of this suite.
UNHURRIED = 8.0
MEGABYTES_3 = 3_000_000
RESULT = {"answer": 42}
KEYS = {"grade": "A", "Größe 2.5": 3}
KEY_OF_ANOTHER_TASK = {"../neighbour/return_value": "replaced"}


def faulty(
    runs: Runs,
    dag_id: str,
    fault: str,
    *,
    on: str,
    times: int | None = None,
    after_seconds: float = UNHURRIED,
    **options: Any,
) -> Run:
    """Start a run whose requests encounter a fault."""
    run = runs.prepare(dag_id, after_seconds=after_seconds, result=RESULT)
    run.control.fault(fault, on=on, times=times, flow=run.flow, **options)
    return run.start()


@pytest.fixture(scope="module")
def started(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run for each test."""
    failed: dict[str, Any] = {
        "outcome": "failed",
        "after_seconds": UNHURRIED,
        "error": {"code": "MODEL_ERROR", "message": "the model is overloaded"},
    }
    cancelled = {"outcome": "cancelled", "after_seconds": UNHURRIED}
    made = {
        "deferred completed": runs.start("deferred", result=RESULT, after_seconds=UNHURRIED),
        "waiting completed": runs.start("waiting", result=RESULT, after_seconds=2),
        "inline": runs.start("deferred_inline", result=RESULT, after_seconds=1),
        "deferred failed": runs.start("deferred", **failed),
        "deferred failed twice": runs.start("deferred_retry", **failed),
        "waiting failed twice": runs.start("waiting_retry", **failed),
        "deferred cancelled": runs.start("deferred_retry", **cancelled),
        "waiting cancelled": runs.start("waiting_retry", **cancelled),
        "deferred skipped": runs.start("deferred_skip", **cancelled),
        "waiting skipped": runs.start("waiting_skip", **cancelled),
        "large": runs.start("deferred", outcome="never"),
        "file": runs.prepare("deferred_file", result_bytes=MEGABYTES_3, after_seconds=UNHURRIED).start(
            output=f"file://{tmp_path_factory.mktemp('output')}/new/out.json"
        ),
        "typed": runs.start("typed_retry", result={"points": "many"}),
        "no such flow": runs.start("deferred_retry", missing=True),
        "silent": runs.start("deferred_silent", result=RESULT, after_seconds=UNHURRIED),
        "progress": runs.start("deferred", outcome="never"),
        "keys": runs.start("multiple_outputs", result=KEYS),
        "key of another task": runs.start("multiple_outputs", result=KEY_OF_ANOTHER_TASK),
    }
    steps = [{"stepId": "a", "status": "completed", "tokens": {"total": 30}, "costUsd": "0.002"}]
    for status in (400, 401, 402, 403):
        made[f"rejected {status}"] = faulty(runs, "deferred_retry", "status", on="submit", status=status)
    made["rate limit"] = faulty(
        runs, "deferred_policy", "status", on="submit", status=429, times=1, retry_after=6
    )
    made["unknown job"] = faulty(runs, "deferred_retry", "not_found", on="poll")
    made["short outage"] = faulty(runs, "deferred_patient", "status", on="poll", status=503, times=3)
    made["long outage"] = faulty(runs, "deferred_retry", "status", on="poll", status=500, after_seconds=60)
    thinking = json.dumps({"executionId": "job", "status": "thinking"})
    made["unknown state"] = faulty(runs, "deferred", "nonsense", on="poll", body=thinking, times=2)
    for dag_id in (
        "deferred_deadline",
        "deferred_deadline_keep",
        "waiting_deadline",
        "deferred_execution_timeout",
        "waiting_execution_timeout",
    ):
        made[dag_id] = runs.start(dag_id, outcome="never")
    made["mapped"] = runs.start("decorated_mapped", after_seconds=UNHURRIED)
    made["reduced"] = runs.start("reduced")
    made["traced"] = runs.start("traced", result=RESULT, steps=steps)
    made["traced failed"] = runs.start("traced", outcome="failed", steps=steps)
    made["traced cancelled"] = runs.start("traced", outcome="cancelled", steps=steps)
    return made


@pytest.mark.parametrize("how", ["deferred", "waiting"])
def test_completed(started: dict[str, Run], how: str) -> None:
    """After a completed job the task succeeds, with the output, the id, the page and the times in XComs."""
    run = started[f"{how} completed"]
    assert run.wait_for() == "success"
    job_id = run.job()["id"]
    assert run.xcom() == RESULT
    assert run.xcom("job_id") == job_id
    assert run.xcom("job_url") == f"https://noukai.test/acme/tests/{run.flow}/runs/{job_id}"
    assert run.airflow.links(run.dag_id, run.run_id, "job") == {"Noukai job": run.xcom("job_url")}
    status = run.xcom("job_status")
    assert status["state"] == "completed"
    assert status["completed_at"] >= status["started_at"] >= status["created_at"]
    assert (run.submissions(), run.cancels(job_id)) == (1, 0)


def test_a_short_job_is_not_deferred(started: dict[str, Run]) -> None:
    """A job that ends within the inline wait needs no deferral."""
    run = started["inline"]
    assert run.wait_for() == "success"
    assert run.xcom() == RESULT
    assert "DEFERRED" not in run.logs()


def test_keys_as_xcoms(started: dict[str, Run]) -> None:
    """With `multiple_outputs`, each key of the output is an XCom as well."""
    run = started["keys"]
    assert run.wait_for() == "success"
    assert {key: run.xcom(key) for key in KEYS} == run.xcom() == KEYS


def test_a_key_of_another_task(started: dict[str, Run]) -> None:
    """No key of an output replaces the XCom of another task, and the error names the key."""
    run = started["key of another task"]
    assert run.wait_for() == "failed"
    assert run.xcom(task_id="neighbour") == KEY_OF_ANOTHER_TASK
    assert "'../neighbour/return_value', which cannot be the key of an XCom" in run.errors()[-1]["exc_value"]


def test_failed_without_retries(started: dict[str, Run]) -> None:
    """A failed job fails the task. The log has the server's message, and a callback gets the job's id."""
    run = started["deferred failed"]
    assert run.wait_for() == "failed"
    run.wait_until_said(f"callback: NoukaiJobFailedException of {run.job()['id']}")
    (error,) = run.errors()
    assert error["exc_type"] == "NoukaiJobFailedException"
    reason = r"failed after \d+ s in step echo \(emulator, attempt 1\): MODEL_ERROR: the model is overloaded"
    assert re.match(rf"{reason}, see https://noukai.test/\S+ \(Noukai job ", error["exc_value"])
    assert sum("noukai_airflow" in frame["filename"] for frame in error["frames"]) <= 1
    status = run.xcom("job_status")
    assert (status["state"], status["failed_step"], status["failed_step_model"]) == (
        "failed",
        "echo",
        "emulator",
    )
    assert status["error"] == "MODEL_ERROR: the model is overloaded"
    assert run.submissions() == 1


@pytest.mark.parametrize("how", ["deferred", "waiting"])
def test_failed_with_a_retry(started: dict[str, Run], how: str) -> None:
    """The retry of a task whose job failed submits a new job."""
    run = started[f"{how} failed twice"]
    assert run.wait_for("failed") == "failed"
    assert (run.tries(), run.submissions(), len(run.jobs())) == (2, 2, 2)


@pytest.mark.parametrize("how", ["deferred", "waiting"])
def test_cancelled_on_the_noukai_side(started: dict[str, Run], how: str) -> None:
    """A job that was cancelled on the Noukai side fails the task, without a retry."""
    run = started[f"{how} cancelled"]
    assert run.wait_for() == "failed"
    assert (run.tries(), run.submissions()) == (1, 1)
    assert "on the Noukai side" in run.logs()


@pytest.mark.parametrize("how", ["deferred", "waiting"])
def test_cancelled_and_skipped(started: dict[str, Run], how: str) -> None:
    """With `on_cancelled="skip"` the task is skipped."""
    assert started[f"{how} skipped"].wait_for() == "skipped"


def test_a_large_result(started: dict[str, Run]) -> None:
    """A result of 3 MB arrives unchanged, and appears in no event and no log."""
    run = started["large"]
    run.wait_until_watched()
    run.control.finish(run.job()["id"], result_bytes=MEGABYTES_3)
    assert run.wait_for() == "success"
    result = str(run.xcom())
    assert len(result) >= MEGABYTES_3
    assert len(run.logs()) < 50_000
    assert "Trigger fired event" in run.logs()
    sample = result[len(result) // 2 :][:500]
    assert [
        log for log in run.airflow.home.rglob("*.log*") if sample in log.read_text(errors="replace")
    ] == []


def test_a_result_in_a_file(started: dict[str, Run]) -> None:
    """With an output path, the result is in the file, and the XCom says only where."""
    run = started["file"]
    assert run.wait_for() == "success"
    returned = run.xcom()
    path = Path(returned["uri"].removeprefix("file://"))
    assert returned["job_id"] == run.job()["id"]
    assert returned["bytes"] == path.stat().st_size >= MEGABYTES_3
    assert json.loads(path.read_text())


def test_a_result_of_another_type(started: dict[str, Run]) -> None:
    """A result that is not of the type fails the task and names the fields; the retry submits a new job."""
    run = started["typed"]
    assert run.wait_for("failed") == "failed"
    assert (run.tries(), run.submissions(), len(run.jobs())) == (2, 2, 2)
    assert "the output is no Grade: points: Input should be a valid integer" in run.errors()[0]["exc_value"]


def test_no_such_flow(started: dict[str, Run]) -> None:
    """A flow that does not exist fails the task without a retry."""
    run = started["no such flow"]
    assert run.wait_for() == "failed"
    assert (run.tries(), run.submissions(), run.jobs()) == (1, 1, [])
    assert "FLOW_NOT_FOUND" in run.logs() or "no such flow" in run.logs().lower()


@pytest.mark.parametrize("status", [400, 401, 402, 403])
def test_a_permanent_error(started: dict[str, Run], status: int) -> None:
    """A permanent error fails the task after one request, without a retry; the log has the status."""
    run = started[f"rejected {status}"]
    assert run.wait_for() == "failed"
    assert (run.tries(), run.submissions(), run.jobs()) == (1, 1, [])
    assert str(status) in run.logs()


@pytest.mark.skipif(AIRFLOW < (3, 3), reason="before 3.3, Airflow has no retry policies")
def test_a_rate_limit(started: dict[str, Run]) -> None:
    """With the retry policy, a task waits as long as the server asks, and not for its own delay."""
    run = started["rate limit"]
    assert run.wait_for() == "success"
    tries = 2 if AIRFLOW < (3, 4) else 1  # since 3.4, the policy reschedules, which takes no try
    assert (run.tries(), run.submissions(), len(run.jobs())) == (tries, 2, 1)


def test_a_job_that_the_server_does_not_know(started: dict[str, Run]) -> None:
    """A job that stays unknown fails the task; a retry finds it by its submission, and submits no second."""
    run = started["unknown job"]
    assert run.wait_for("failed") == "failed"
    assert (run.tries(), run.submissions()) == (2, 1)


def test_transient_errors_within_the_retry_window(started: dict[str, Run]) -> None:
    """Transient errors within the retry window change nothing."""
    run = started["short outage"]
    assert run.wait_for() == "success"
    assert (run.xcom(), run.submissions()) == (RESULT, 1)


def test_transient_errors_beyond_the_retry_window(started: dict[str, Run]) -> None:
    """Transient errors that outlast the retry window fail the task, and the retry attaches to the job."""
    run = started["long outage"]
    assert run.wait_for("failed") == "failed"
    assert (run.tries(), run.submissions(), run.cancels(run.job()["id"])) == (2, 1, 0)


def test_an_unknown_state(started: dict[str, Run]) -> None:
    """The task keeps polling a job in an unknown state."""
    run = started["unknown state"]
    assert run.wait_for() == "success"
    assert run.xcom() == RESULT


@pytest.mark.parametrize(("how", "tries"), [("deferred_deadline", 2), ("waiting_deadline", 1)])
def test_deadline(started: dict[str, Run], how: str, tries: int) -> None:
    """A job that does not end within `timeout` is cancelled and fails its task; a retry submits a new one."""
    run = started[how]
    assert run.wait_for("failed") == "failed"
    assert (run.tries(), run.submissions(), len(run.jobs())) == (tries, tries, tries)
    assert [(job["state"], run.cancels(job["id"])) for job in run.jobs()] == [("cancelled", 1)] * tries


def test_deadline_without_a_cancel(started: dict[str, Run]) -> None:
    """With `cancel_on_timeout=False` the job is left running, and the retry waits for it again."""
    run = started["deferred_deadline_keep"]
    (job,) = run.wait_for_jobs(1)
    run.wait_until_attached()
    run.finish_well(job["id"])
    assert run.tries() == 2


@pytest.mark.parametrize("how", ["deferred_execution_timeout", "waiting_execution_timeout"])
def test_execution_timeout(started: dict[str, Run], runs: Runs, how: str) -> None:
    """At `execution_timeout` the job is cancelled, even while its task is deferred."""
    run = started[how]
    assert run.wait_for("failed") == "failed"
    while not run.submissions():  # the timeout struck before the task could submit, so there is no job
        run = runs.start(how, outcome="never")
        assert run.wait_for("failed") == "failed"
    job = run.job()
    assert (run.submissions(), run.cancels(job["id"]), job["state"]) == (1, 1, "cancelled")


def test_decorated_and_mapped(started: dict[str, Run]) -> None:
    """A decorated function is called for each input of a mapped task, with its templates rendered."""
    run = started["mapped"]
    for index, text in enumerate("ab"):
        assert run.wait_for("success", map_index=index) == "success"
        job_id = run.xcom("job_id", map_index=index)
        (job,) = (job for job in run.jobs() if job["id"] == job_id)
        assert job["message"] == f"decorated_mapped {text}"
        assert job["parameters"] == {"deep": [{"text": text}]}
        task = run.airflow.task(run.dag_id, run.run_id, "job", index)
        assert task["rendered_map_index"] == text
    assert run.submissions() == 2


def test_outputs_of_a_mapped_task(started: dict[str, Run]) -> None:
    """The outputs of a mapped task are a list to a job that takes them, and the inputs of a batch."""
    run = started["reduced"]
    assert run.wait_for() == "success"
    assert run.xcom() == {"parameters": {"words": ["word 1", "word 2"]}}
    assert run.wait_for(task_id="batch") == "success"
    assert run.xcom(task_id="batch") == [{"message": "word 1"}, {"message": "word 2"}]


def test_silent(started: dict[str, Run]) -> None:
    """With `do_xcom_push=False` only the link is stored, by Airflow itself."""
    run = started["silent"]
    assert run.wait_for() == "success"
    assert run.airflow.xcom_keys(run.dag_id, run.run_id, "job") <= {"_link_NoukaiJobLink"}


def test_progress_is_in_the_log(started: dict[str, Run]) -> None:
    """Each change of state or progress is logged once, even while the triggerer waits."""
    run = started["progress"]
    run.wait_until_watched()
    job_id = run.job()["id"]
    run.wait_until_said("running")
    run.control.progress(job_id, {"step": 2, "of": 3})
    run.wait_until_said("progress 67 % (2 of 3)")
    if NOTIFIES_TRIGGERS:
        wait_until(
            lambda: run.xcom("job_status").get("progress") == "67 % (2 of 3)", "the progress in the XCom"
        )
        assert run.xcom("job_status")["state"] == "running"
    polls = run.control.counts(job_id)["poll"]
    wait_until(lambda: run.control.counts(job_id)["poll"] > polls + 2, "more polls")
    run.control.finish(job_id)
    assert run.wait_for() == "success"
    assert run.said("progress 67 % (2 of 3)") == 1
    first, later, left = run.said(": running"), run.said("→ running"), run.said(": running → ")
    assert first + later - left == 1, "the first poll shows the job pending or running"
    assert run.said("running → completed") == 1


@pytest.mark.parametrize(
    ("how", "state"), [("traced", "success"), ("traced failed", "failed"), ("traced cancelled", "failed")]
)
def test_tokens_and_cost(started: dict[str, Run], how: str, state: str) -> None:
    """The status and the log of a traced job have its tokens and its cost, however the job ends."""
    run = started[how]
    assert run.wait_for() == state
    assert run.said("used 30 tokens, $0.002") == 1
    status = run.xcom("job_status")
    assert (status["total_tokens"], status["cost_usd"]) == (30, "0.002")


def test_no_key_is_in_any_log(started: dict[str, Run]) -> None:
    """Neither the tasks' logs nor those of the processes show the key."""
    from tests.e2e_airflow.conftest import KEY

    run = started["deferred completed"]
    run.wait_for()
    files = [file for file in run.airflow.home.rglob("*.log*") if file.is_file()]
    assert len(files) > 5
    assert [file for file in files if KEY in file.read_text(errors="replace")] == []
