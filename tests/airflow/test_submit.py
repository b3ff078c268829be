"""Which job a try of a task waits for: a new one, or that of an earlier try. With a local Noukai."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from noukai_airflow._job_store import JobRecord, JobStore, TaskKey
from noukai_airflow._submit import TaskJob
from noukai_core import JobRequest
from noukai_core._engine import submission_registry
from tests.airflow.conftest import KEY, FakeTask, MemoryStore
from tests.core.raw_service import ACCEPTED, RawService

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core import Job
    from noukai_core.emulator import Emulator


class Tries:
    """A task that is tried, retried and cleared."""

    def __init__(self, settings: ConnectionSettings, emulator: Emulator, store: MemoryStore | None) -> None:
        self.settings = settings
        self.control = emulator.control
        self.store = store
        self.retries = 2
        self.task = FakeTask(max_tries=2, run_id=uuid4().hex)
        self.session_id: str | None = None
        self.message: Any = "Hello"
        self.cancel_on_kill = True
        self.rescheduled = False
        self.clear_discards_state = False

    def run(self, *, durable: bool = True) -> Job:
        submission_registry._registry.cache_clear()  # each time in a process of its own
        request = JobRequest("acme/demo/flow", self.message, session_id=self.session_id)
        store = JobStore(self.store if durable else None)
        task: Any = self.task
        return TaskJob(
            self.settings,
            request.flow,
            lambda: request,
            store,
            TaskKey.of({"ti": task}),  # type: ignore[typeddict-item]
            task,
            retries=self.retries,
            durable=durable,
            cancel_on_kill=self.cancel_on_kill,
            rescheduled=self.rescheduled,
            clear_discards_state=self.clear_discards_state,
        ).obtain()

    def retry(self, **arguments: bool) -> Job:
        self.task.try_number += 1
        return self.run(**arguments)

    def clear(self) -> Job:
        self.task.max_tries = self.task.try_number + self.retries
        return self.retry()

    def finish(self, job: Job, outcome: str = "completed") -> None:
        self.control.finish(job.id, outcome=outcome)

    def count(self, kind: str) -> int:
        return self.control.counts().get(kind, 0)


@pytest.fixture
def tries(settings: ConnectionSettings, emulator: Emulator, store: MemoryStore) -> Tries:
    """A task on Airflow 3.3 or later, which has a task state store."""
    emulator.control.script("flow", outcome="never")
    return Tries(settings, emulator, store)


@pytest.fixture
def without_store(settings: ConnectionSettings, emulator: Emulator) -> Tries:
    """A task on an older Airflow, which has none."""
    emulator.control.script("flow", outcome="never")
    return Tries(settings, emulator, None)


def test_the_submission_id_is_stored_before_the_request(tries: Tries, store: MemoryStore) -> None:
    """The id of the submission is written first, then the job's id."""
    job = tries.run()
    assert [record.get("job_id") for record in store.writes] == [None, job.id]
    assert store.writes[0]["submission_id"] == tries.control.jobs()[0]["session_id"]


@pytest.mark.parametrize("kind", ["tries", "without_store"])
def test_a_retry_attaches_to_a_running_job(kind: str, request: pytest.FixtureRequest) -> None:
    """The next try waits for a job that is still running."""
    tries: Tries = request.getfixturevalue(kind)
    first = tries.run()
    assert tries.retry().id == first.id
    assert tries.count("submit") == 1


@pytest.mark.parametrize("kind", ["tries", "without_store"])
def test_a_retry_takes_the_result_of_a_completed_job(kind: str, request: pytest.FixtureRequest) -> None:
    """A job that completed between two tries is not paid for again."""
    tries: Tries = request.getfixturevalue(kind)
    first = tries.run()
    tries.finish(first)
    again = tries.retry()
    assert (again.id, again.status().state) == (first.id, "completed")
    assert tries.count("submit") == 1


@pytest.mark.parametrize("kind", ["tries", "without_store"])
def test_a_retry_after_a_failed_job_submits(kind: str, request: pytest.FixtureRequest) -> None:
    """Each further try replaces a failed job by a new one."""
    tries: Tries = request.getfixturevalue(kind)
    jobs = [tries.run()]
    for _ in range(2):
        tries.finish(jobs[-1], "failed")
        jobs.append(tries.retry())
    assert len({job.id for job in jobs}) == 3
    assert tries.count("submit") == 3


@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled"])
def test_a_try_that_is_rescheduled_has_its_job(without_store: Tries, outcome: str) -> None:
    """A try that Airflow begins again, since its DAG was missing, ends as its job has, and pays nothing."""
    first = without_store.run()
    without_store.finish(first, outcome)
    without_store.rescheduled = True
    again = without_store.run()
    assert (again.id, again.status().state) == (first.id, outcome)
    assert without_store.count("submit") == 1


def test_a_try_that_is_rescheduled_without_durability(without_store: Tries) -> None:
    """Without `durable`, a try that Airflow begins again has its own job, and no retry has."""
    first = without_store.run(durable=False)
    without_store.rescheduled = True
    assert without_store.run(durable=False).id == first.id
    assert without_store.count("submit") == 1
    without_store.rescheduled = False
    assert without_store.retry(durable=False).id != first.id


def test_a_retry_that_is_rescheduled(without_store: Tries) -> None:
    """A retry that Airflow begins again has its own job, and not the failed one of the try before."""
    without_store.finish(without_store.run(), "failed")
    second = without_store.retry()
    without_store.rescheduled = True
    assert without_store.run().id == second.id
    assert without_store.count("submit") == 2


def test_a_transient_error_while_the_earlier_job_is_polled(without_store: Tries, emulator: Emulator) -> None:
    """The task waits for the job of an earlier try, even if polling it fails at first."""
    first = without_store.run()
    emulator.control.fault("status", on="poll", times=1, status=503, retry_after=60)
    assert without_store.retry().id == first.id
    assert without_store.count("submit") == 1


def test_a_job_that_only_its_session_knows_is_not_replaced(tries: Tries, emulator: Emulator) -> None:
    """A retry whose job the server does not know asks the session before it submits."""
    first = tries.run()
    tries.store.kept["noukai_job"]["last_sent_at"] = "2020-01-01T00:00:00+00:00"  # the race is over
    emulator.control.fault("not_found", on="poll", times=1)
    assert tries.retry().id == first.id
    assert (tries.count("submit"), tries.count("session")) == (1, 1)


def test_a_job_that_the_server_has_forgotten_is_replaced(tries: Tries, emulator: Emulator) -> None:
    """A retry submits a new job when the session does not know the old one either."""
    first = tries.run()
    tries.store.kept["noukai_job"]["last_sent_at"] = "2020-01-01T00:00:00+00:00"
    emulator.control.fault("not_found", on="poll", times=1)
    emulator.control.fault("not_found", on="session", times=1)
    assert tries.retry().id != first.id
    assert (tries.count("submit"), tries.count("session")) == (2, 1)


def test_a_job_cancelled_on_the_noukai_side_is_not_replaced(tries: Tries) -> None:
    """A retry whose job was cancelled on the Noukai side submits nothing."""
    first = tries.run()
    tries.finish(first, "cancelled")
    assert tries.retry().id == first.id
    assert tries.count("submit") == 1


def test_an_abandoned_job_is_replaced(tries: Tries, store: MemoryStore) -> None:
    """After a timeout the next try cancels the job again if it is still running, and submits a new one."""
    first = tries.run()
    JobStore(store).change(abandoned=True)
    second = tries.retry()
    assert second.id != first.id
    assert first.status().state == "cancelled"


def test_a_clear_stops_the_job_and_submits(tries: Tries) -> None:
    """A cleared task submits a new job, and its old one is cancelled."""
    first = tries.run()
    second = tries.clear()
    assert second.id != first.id
    assert first.status().state == "cancelled"
    assert not second.status().finished
    assert (tries.count("submit"), tries.count("cancel")) == (2, 1)


def test_a_clear_of_a_task_that_succeeded_submits(tries: Tries) -> None:
    """The job that completed before the clear is neither reused nor cancelled."""
    first = tries.run()
    tries.finish(first)
    assert tries.clear().id != first.id
    assert (tries.count("submit"), tries.count("cancel")) == (2, 0)


def test_a_clear_that_leaves_the_job_running(tries: Tries) -> None:
    """With `cancel_on_kill=False` a cleared task submits a new job, and its old one is left running."""
    tries.cancel_on_kill = False
    first = tries.run()
    assert tries.clear().id != first.id
    assert not first.status().finished
    assert (tries.count("submit"), tries.count("cancel")) == (2, 0)


def test_a_clear_after_a_crash_before_the_response(tries: Tries, store: MemoryStore) -> None:
    """After a clear, even a job whose id was never recorded is found and cancelled."""
    first = tries.run()
    store.kept["noukai_job"]["job_id"] = None
    second = tries.clear()
    assert second.id != first.id
    assert first.status().state == "cancelled"
    assert tries.count("submit") == 2


def test_a_clear_while_the_state_is_unknown(tries: Tries, emulator: Emulator) -> None:
    """If the state of the old job is unknown, the job is cancelled."""
    first = tries.run()
    emulator.control.fault("status", on="poll", times=1, status=403)
    tries.clear()
    assert first.status().state == "cancelled"


@pytest.mark.parametrize("kind", ["tries", "without_store"])
def test_a_clear_that_leaves_no_record(kind: str, request: pytest.FixtureRequest) -> None:
    """A cleared task whose record is gone finds its old job by its identity, and stops it."""
    tries: Tries = request.getfixturevalue(kind)
    first = tries.run()
    tries.retry()
    if tries.store is not None:
        tries.store.kept.clear()
    second = tries.clear()
    assert (first.status().state, second.status().finished) == ("cancelled", False)
    assert (tries.count("submit"), tries.count("cancel")) == (2, 1)


def test_a_clear_before_the_new_try_has_run(without_store: Tries) -> None:
    """Two clears in a row find the job of before the first."""
    first = without_store.run()
    without_store.task.max_tries = without_store.task.try_number + without_store.retries
    without_store.task.try_number += 1  # scheduled, and cleared before it ran
    second = without_store.clear()
    assert (first.status().state, second.status().finished) == ("cancelled", False)
    assert without_store.count("submit") == 2


def test_a_clear_without_a_record_stops_the_last_job_alone(tries: Tries) -> None:
    """Of several jobs of a task, only the last can still run: the server is asked for no other."""
    jobs = [tries.run()]
    tries.finish(jobs[0], "failed")
    jobs.append(tries.retry())
    assert tries.store is not None
    tries.store.kept.clear()
    tries.clear()
    assert [job.status().state for job in jobs] == ["failed", "cancelled"]
    assert tries.count("cancel") == 1


def test_a_clear_that_keeps_the_state_attaches(tries: Tries) -> None:
    """Where a clear discards what a task remembers, a record that is still there is one to go on with."""
    tries.clear_discards_state = True
    first = tries.run()
    assert tries.clear().id == first.id
    assert tries.retry().id == first.id
    assert (tries.count("submit"), tries.count("cancel")) == (1, 0)


def test_a_clear_that_keeps_the_state_takes_a_result_that_was_not_delivered(tries: Tries) -> None:
    """A job that completed, and whose result no try has taken, is not paid for again."""
    tries.clear_discards_state = True
    first = tries.run()
    tries.finish(first)
    assert tries.clear().id == first.id
    assert tries.count("submit") == 1


@pytest.mark.parametrize("outcome", ["failed", "cancelled", "delivered"])
def test_a_clear_that_keeps_the_state_of_a_job_that_is_over(
    outcome: str, tries: Tries, store: MemoryStore
) -> None:
    """A job that failed, was cancelled, or whose result was taken, makes way for a new one."""
    tries.clear_discards_state = True
    first = tries.run()
    tries.finish(first, "completed" if outcome == "delivered" else outcome)
    JobStore(store).change(delivered=outcome == "delivered")
    second = tries.clear()
    assert second.id != first.id
    assert (tries.count("submit"), tries.count("cancel")) == (2, 0)


def test_a_try_that_runs_again_submits_under_an_identity_of_its_own(tries: Tries) -> None:
    """A rescheduled try whose job failed does not pass for the submission that it has made before."""
    jobs = []
    for _ in range(3):
        jobs.append(tries.run())
        tries.finish(jobs[-1], "failed")
    assert len({job.id for job in jobs}) == len({job["session_id"] for job in tries.control.jobs()}) == 3


def test_a_retry_after_a_clear_attaches_to_the_new_job(tries: Tries) -> None:
    """Each clear leads to a new job, to which later retries attach."""
    tries.run()
    second = tries.clear()
    assert tries.retry().id == second.id
    third = tries.clear()
    assert tries.retry().id == third.id
    assert tries.count("submit") == 3


def test_a_crash_before_the_response(tries: Tries, store: MemoryStore) -> None:
    """A submission whose response was lost is found, and nothing is sent twice."""
    first = tries.run()
    store.kept["noukai_job"]["job_id"] = None
    assert tries.retry().id == first.id
    assert tries.count("submit") == 1
    assert store.kept["noukai_job"]["job_id"] == first.id


def test_a_repeated_submission_is_recorded_with_its_time(tries: Tries, store: MemoryStore) -> None:
    """A repeated submission is recorded with its time, so that a third try asks for its job long enough."""
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    record = replace(JobRecord.new(2, str(uuid4()), "acme/demo/flow"), last_sent_at=long_ago)
    JobStore(store).write(record)
    job = tries.retry()
    before, after = store.writes[-2:]
    assert before["last_sent_at"] > long_ago.isoformat()
    assert job.submitted_at is not None
    assert after["last_sent_at"] == job.submitted_at.isoformat()


def test_a_crash_before_the_request(tries: Tries, store: MemoryStore) -> None:
    """A recorded submission that was never sent is sent once, under its own id."""
    record = JobRecord.new(2, str(uuid4()), "acme/demo/flow")
    JobStore(store).write(record)
    tries.retry()
    assert tries.count("submit") == 1
    assert tries.control.jobs()[0]["session_id"] == record.submission_id


def test_a_store_that_fails_after_the_submission(
    tries: Tries, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the job's id cannot be stored, the task continues, and a retry finds the job by its submission."""
    keep = store.set

    def fail_with_a_job(key: str, value: Any, **_: Any) -> None:
        if "job_id" in value:
            raise ConnectionError("the API server is unavailable")
        keep(key, value)

    monkeypatch.setattr(store, "set", fail_with_a_job)
    first = tries.run()
    monkeypatch.undo()
    assert tries.retry().id == first.id


def test_a_job_that_the_server_no_longer_knows(tries: Tries, store: MemoryStore) -> None:
    """A recorded job that the server does not know makes way for the job of the recorded submission."""
    first = tries.run()
    store.kept["noukai_job"] |= {"job_id": "job-gone", "last_sent_at": "2026-01-01T00:00:00+00:00"}
    assert tries.retry().id == first.id
    assert tries.count("submit") == 1


def test_a_permanent_error_leaves_no_record(tries: Tries, store: MemoryStore) -> None:
    """After a permanent error there is certainly no job, so a later try does not ask for one."""
    from noukai_core import FlowNotFoundError

    tries.control.script("flow", missing=True)
    with pytest.raises(FlowNotFoundError):
        tries.run()
    assert store.kept == {}


def test_invalid_input_sends_nothing(tries: Tries) -> None:
    """Inputs are checked before anything is sent."""
    from noukai_core import InvalidInputError

    tries.session_id = "not a uuid"
    with pytest.raises(InvalidInputError, match="session_id"):
        tries.run()
    assert tries.count("submit") == 0


def test_invalid_input_of_a_retry_keeps_the_record(tries: Tries, store: MemoryStore) -> None:
    """If a retry's inputs are invalid, the record of an earlier submission is kept."""
    from noukai_core import InvalidInputError

    first = tries.run()
    store.kept["noukai_job"]["job_id"] = None
    tries.message = {"no": "text"}
    with pytest.raises(InvalidInputError, match="message"):
        tries.retry()
    tries.message = "Hello"
    assert tries.retry().id == first.id


def test_a_task_that_is_not_durable_submits_in_each_try(tries: Tries) -> None:
    """With `durable=False` no try attaches to the job of another."""
    first = tries.run(durable=False)
    assert tries.retry(durable=False).id != first.id


def test_a_users_own_session_is_not_looked_up(without_store: Tries) -> None:
    """A user's own session may hold many jobs, so it does not show which of them a try submitted."""
    without_store.session_id = str(uuid4())
    first = without_store.run()
    assert without_store.retry().id != first.id


def test_a_submission_without_a_response_is_named(
    settings: ConnectionSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that is killed before its submission has a response names it, as it may make a job."""
    with RawService() as service:

        def killed() -> tuple[bytes]:
            task_job.log_in_flight()
            return (ACCEPTED,)

        service.on("submit", killed)
        task: Any = FakeTask(max_tries=2, run_id=uuid4().hex)
        key = TaskKey.of({"ti": task})  # type: ignore[typeddict-item]
        task_job = TaskJob(
            replace(settings, base_url=service.base_url),
            "acme/demo/flow",
            lambda: JobRequest("acme/demo/flow", "Hello"),
            JobStore(None),
            key,
            task,
            retries=2,
            durable=True,
            cancel_on_kill=True,
        )
        task_job.obtain()
        task_job.log_in_flight()
    assert caplog.text.count(f"{key.submission_id(KEY, 1)} to acme/demo/flow: may be left running") == 1
