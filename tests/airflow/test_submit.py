"""Which job a try of a task waits for: a new one, or that of an earlier try.

Against a local Noukai, which counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from noukai_airflow._job_store import JobRecord, JobStore
from noukai_airflow._submit import JobRequest, TaskJob, cancel_if_possible
from tests.airflow.conftest import MemoryStore, PretendedTask

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
        self.task = PretendedTask(max_tries=2, run_id=uuid4().hex)
        self.session_id: str | None = None
        self.message: Any = "Hello"
        self.cancel_on_kill = True

    def run(self, *, durable: bool = True) -> Job:
        inputs = JobRequest("acme/demo/flow", self.message, None, None, "production", False, self.session_id)
        store = JobStore(self.store if durable else None)
        task: Any = self.task
        return TaskJob(
            self.settings,
            inputs,
            store,
            task,
            retries=self.retries,
            durable=durable,
            cancel_on_kill=self.cancel_on_kill,
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
    """A task on Airflow 3.3 or later, where it can remember."""
    emulator.control.script("flow", outcome="never")
    return Tries(settings, emulator, store)


@pytest.fixture
def forgetful(settings: ConnectionSettings, emulator: Emulator) -> Tries:
    """A task on an older Airflow, where it cannot."""
    emulator.control.script("flow", outcome="never")
    return Tries(settings, emulator, None)


def test_the_submission_id_is_stored_before_the_request(tries: Tries, store: MemoryStore) -> None:
    """First the identity of the submission is written, then the job's id."""
    job = tries.run()
    assert [record["job_id"] for record in store.writes] == [None, job.id]
    assert store.writes[0]["submission_id"] == tries.control.jobs()[0]["session_id"]


@pytest.mark.parametrize("kind", ["tries", "forgetful"])
def test_a_retry_attaches_to_a_running_job(kind: str, request: pytest.FixtureRequest) -> None:
    """A job that still runs is waited for by the next try."""
    tries: Tries = request.getfixturevalue(kind)
    first = tries.run()
    assert tries.retry().id == first.id
    assert tries.count("submit") == 1


@pytest.mark.parametrize("kind", ["tries", "forgetful"])
def test_a_retry_takes_the_result_of_a_completed_job(kind: str, request: pytest.FixtureRequest) -> None:
    """A job that has completed in between is not paid for again."""
    tries: Tries = request.getfixturevalue(kind)
    first = tries.run()
    tries.finish(first)
    again = tries.retry()
    assert (again.id, again.status().state) == (first.id, "completed")
    assert tries.count("submit") == 1


@pytest.mark.parametrize("kind", ["tries", "forgetful"])
def test_a_retry_after_a_failed_job_submits(kind: str, request: pytest.FixtureRequest) -> None:
    """A failed job makes way for a new one, in each further try."""
    tries: Tries = request.getfixturevalue(kind)
    jobs = [tries.run()]
    for _ in range(2):
        tries.finish(jobs[-1], "failed")
        jobs.append(tries.retry())
    assert len({job.id for job in jobs}) == 3
    assert tries.count("submit") == 3


def test_a_fault_while_the_earlier_job_is_polled(forgetful: Tries, emulator: Emulator) -> None:
    """An earlier try's job that was found is waited for, also when a look at it fails for now."""
    first = forgetful.run()
    emulator.control.fault("status", on="poll", times=1, status=503, retry_after=60)
    assert forgetful.retry().id == first.id
    assert forgetful.count("submit") == 1


def test_a_job_that_a_person_cancelled_is_not_replaced(tries: Tries) -> None:
    """A retry that finds its job cancelled on the Noukai side tells so, and submits nothing."""
    first = tries.run()
    tries.finish(first, "cancelled")
    assert tries.retry().id == first.id
    assert tries.count("submit") == 1


def test_a_job_that_was_given_up_is_replaced(tries: Tries, store: MemoryStore) -> None:
    """After a deadline the next try cancels the job once more, should it still run, and submits a new one."""
    first = tries.run()
    JobStore(store).change(abandoned=True)
    second = tries.retry()
    assert second.id != first.id
    assert first.status().state == "cancelled"


def test_a_clear_stops_the_job_and_submits(tries: Tries) -> None:
    """A cleared task begins anew, and its old job is cancelled."""
    first = tries.run()
    second = tries.clear()
    assert second.id != first.id
    assert first.status().state == "cancelled"
    assert not second.status().finished
    assert (tries.count("submit"), tries.count("cancel")) == (2, 1)


def test_a_clear_of_a_task_that_succeeded_submits(tries: Tries) -> None:
    """A completed job of before the clear is not taken for the new one, and there is nothing to cancel."""
    first = tries.run()
    tries.finish(first)
    assert tries.clear().id != first.id
    assert (tries.count("submit"), tries.count("cancel")) == (2, 0)


def test_a_clear_that_leaves_the_job_alone(tries: Tries) -> None:
    """With `cancel_on_kill=False` a cleared task submits a new job, and its old one goes on."""
    tries.cancel_on_kill = False
    first = tries.run()
    assert tries.clear().id != first.id
    assert not first.status().finished
    assert (tries.count("submit"), tries.count("cancel")) == (2, 0)


def test_a_clear_after_a_crash_before_the_response(tries: Tries, store: MemoryStore) -> None:
    """A job whose id no try has learned is found and stopped, too, when the task is cleared."""
    first = tries.run()
    store.kept["noukai_job"]["job_id"] = None
    second = tries.clear()
    assert second.id != first.id
    assert first.status().state == "cancelled"
    assert tries.count("submit") == 2


def test_a_clear_while_the_server_cannot_tell(tries: Tries, emulator: Emulator) -> None:
    """When it is not known how the old job is, it is cancelled."""
    first = tries.run()
    emulator.control.fault("status", on="poll", times=1, status=403)
    tries.clear()
    assert first.status().state == "cancelled"


def test_a_retry_after_a_clear_attaches_to_the_new_job(tries: Tries) -> None:
    """Generations are kept apart, also over several clears and retries."""
    tries.run()
    second = tries.clear()
    assert tries.retry().id == second.id
    third = tries.clear()
    assert tries.retry().id == third.id
    assert tries.count("submit") == 3


def test_a_crash_before_the_response(tries: Tries, store: MemoryStore) -> None:
    """A submission whose answer nobody read is found again, and nothing is sent twice."""
    first = tries.run()
    store.kept["noukai_job"]["job_id"] = None
    assert tries.retry().id == first.id
    assert tries.count("submit") == 1
    assert store.kept["noukai_job"]["job_id"] == first.id


def test_a_repeated_submission_is_recorded_as_sent_now(tries: Tries, store: MemoryStore) -> None:
    """A repeated submission is recorded with its own time, so that one more try asks for it long enough."""
    record = JobRecord(2, str(uuid4()), "2026-01-01T00:00:00+00:00", "acme/demo/flow")
    JobStore(store).write(record)
    job = tries.retry()
    before, after = store.writes[-2:]
    assert before["last_sent_at"] > record.last_sent_at
    assert job.submitted_at is not None
    assert after["last_sent_at"] == job.submitted_at.isoformat()


def test_a_crash_before_the_request(tries: Tries, store: MemoryStore) -> None:
    """A submission that was only planned is sent, as itself, once the server knows of no job."""
    record = JobRecord.new(2, str(uuid4()), "acme/demo/flow")
    JobStore(store).write(record)
    tries.retry()
    assert tries.count("submit") == 1
    assert tries.control.jobs()[0]["session_id"] == record.submission_id


def test_a_store_that_fails_after_the_submission(
    tries: Tries, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the job's id cannot be stored, the task goes on: the identity is stored, and leads to the job."""
    keep = store.set

    def fail_with_a_job(key: str, value: Any) -> None:
        if value["job_id"] is not None:
            raise ConnectionError("the API server is not there")
        keep(key, value)

    monkeypatch.setattr(store, "set", fail_with_a_job)
    first = tries.run()
    monkeypatch.undo()
    assert tries.retry().id == first.id


def test_a_job_that_the_server_has_forgotten(tries: Tries, store: MemoryStore) -> None:
    """A job that is not known any more makes way for a new one."""
    first = tries.run()
    store.kept["noukai_job"] |= {"job_id": "job-gone", "last_sent_at": "2026-01-01T00:00:00+00:00"}
    assert tries.retry().id not in (first.id, "job-gone")


def test_a_refusal_leaves_no_trace(tries: Tries, store: MemoryStore) -> None:
    """After a refusal there surely is no job, so a later try need not ask for one."""
    from noukai_core import FlowNotFoundError

    tries.control.script("flow", missing=True)
    with pytest.raises(FlowNotFoundError):
        tries.run()
    assert store.kept == {}


def test_bad_input_sends_nothing(tries: Tries) -> None:
    """Inputs are checked before anything is sent."""
    from noukai_core import InvalidInputError

    tries.session_id = "not a uuid"
    with pytest.raises(InvalidInputError, match="session_id"):
        tries.run()
    assert tries.count("submit") == 0


def test_bad_input_of_a_retry_forgets_no_job(tries: Tries, store: MemoryStore) -> None:
    """When a retry's inputs are refused before anything is asked, an earlier submission is not forgotten."""
    from noukai_core import InvalidInputError

    first = tries.run()
    store.kept["noukai_job"]["job_id"] = None
    tries.message = {"no": "text"}
    with pytest.raises(InvalidInputError, match="message"):
        tries.retry()
    tries.message = "Hello"
    assert tries.retry().id == first.id


def test_a_task_that_is_not_durable_submits_in_each_try(tries: Tries) -> None:
    """With `durable=False` no try looks for the job of another."""
    first = tries.run(durable=False)
    assert tries.retry(durable=False).id != first.id


def test_a_session_of_the_users_own_is_not_asked(forgetful: Tries) -> None:
    """A session that may hold many jobs cannot tell which of them a try has submitted."""
    forgetful.session_id = str(uuid4())
    first = forgetful.run()
    assert forgetful.retry().id != first.id


def test_cancelling_says_when_it_cannot(
    tries: Tries, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that could not be cancelled is named in a warning, and nothing is raised."""
    job = tries.run()
    emulator.control.fault("no_cancel", times=1)
    assert not cancel_if_possible(job, "of a test")
    emulator.control.fault("status", on="cancel", times=1, status=403)
    assert not cancel_if_possible(job, "of a test")
    assert caplog.text.count(f"{job.id} of acme/demo/flow: cancel failed") == 2
