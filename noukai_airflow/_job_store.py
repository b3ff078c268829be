"""What a task records about its job for its next try, so that no try submits the same job again.

Since Airflow 3.3, tasks have a state store that outlives retries. Since 3.4, a clear discards it unless the
user keeps it. Older versions delete a task's XComs when a retry starts. So the ids of a task's submissions
are derived from the identity of the task, and lead to its jobs where nothing is stored.
"""

from __future__ import annotations

import uuid
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, cast

from noukai_airflow._compat import CLEAR_DISCARDS_STATE
from noukai_core import SubmissionRecord

if TYPE_CHECKING:
    from airflow.sdk import Context

    from noukai_core import Job

_KEY = "noukai_job"
_OWN_FIELDS = ("max_tries", "abandoned", "wait_again", "delivered", "try_number", "resubmission")
_NAMESPACE = uuid.UUID("6f0d9c2e-2f0e-5c57-9d55-0a2f8f1a4c1b")


@dataclass(frozen=True, kw_only=True)
class JobRecord(SubmissionRecord):
    """The submission of a task, and its job as soon as there is one.

    Attributes:
        max_tries: The task's `max_tries`, which a clear raises and a retry does not.
        abandoned: Whether the task wants this job to end, so that the next try must not wait for it.
        wait_again: Whether the job was left running at its deadline, so that the next try waits for the same
            time again.
        delivered: Whether the task has returned the job's result.
        try_number: The try that made the submission.
        resubmission: The number of submissions that this try made before.
    """

    max_tries: int
    abandoned: bool = False
    wait_again: bool = False
    delivered: bool = False
    try_number: int = 0
    resubmission: int = 0

    @classmethod
    def new(cls, max_tries: int, submission_id: str, flow: str, **fields: Any) -> JobRecord:
        """Make the record of a submission that is about to be sent for the first time."""
        return cls(max_tries=max_tries, submission_id=submission_id, last_sent_at=_now(), flow=flow, **fields)

    def sent_now(self) -> JobRecord:
        """Return the record of the same submission, which is about to be sent again."""
        return replace(self, last_sent_at=_now())

    def with_job(self, job: Job) -> JobRecord:
        """Return the record with the job that the submission led to."""
        sent_at = job.submitted_at or self.last_sent_at
        return replace(self, job_id=job.id, flow=job.flow, last_sent_at=sent_at)


class Store(Protocol):
    """The methods of Airflow's task state store that are used."""

    def get(self, key: str) -> Any: ...
    def set(self, key: str, value: Any, *, retention: Any = None) -> None: ...
    def delete(self, key: str) -> None: ...


class JobStore:
    """Keeps the record of a task. Without a store nothing is kept."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    @classmethod
    def of(cls, context: Context, *, durable: bool) -> JobStore:
        """Return the job store of the running task."""
        store = cast("dict[str, Any]", context).get("task_state_store") if durable else None
        return cls(store)

    @property
    def is_durable(self) -> bool:
        """Whether the next try can read what is written."""
        return self._store is not None

    def read(self) -> JobRecord | None:
        """Return the record, or `None` if there is none or it is malformed."""
        stored = self._store.get(_KEY) if self._store is not None else None
        if not isinstance(stored, dict):
            return None
        fields = cast("dict[str, Any]", stored)
        own = {name: fields[name] for name in _OWN_FIELDS if name in fields}
        try:
            record = JobRecord.from_strings(fields, **own)
        except (TypeError, ValueError):
            return None
        return record if record.last_sent_at else None

    def write(self, record: JobRecord) -> None:
        """Store a record in place of the previous one."""
        if self._store is not None:
            own = {name: getattr(record, name) for name in _OWN_FIELDS}
            self._store.set(_KEY, record.to_strings() | own, retention=never_expire())

    def change(self, **changes: Any) -> None:
        """Change fields of the stored record, if there is one."""
        if (record := self.read()) is not None:
            self.write(replace(record, **changes))

    def mark_delivered(self) -> None:
        """Record that the task has returned the job's result, so that a clear leads to a new job.

        This matters only where a record that outlives a clear is one that the user kept.
        """
        if CLEAR_DISCARDS_STATE:
            self.change(delivered=True)

    def forget(self) -> None:
        """Delete the record, since it is certain that there is no job."""
        if self._store is not None:
            self._store.delete(_KEY)


def _now() -> datetime:
    return datetime.now(UTC)


def never_expire() -> Any:
    """Return the retention that keeps a record as long as its DAG run. The default is 30 days."""
    try:
        from airflow.sdk.execution_time.context import NEVER_EXPIRE
    except ImportError:  # before Airflow 3.3, which has no store
        return None
    return NEVER_EXPIRE


@dataclass(frozen=True)
class TaskKey:
    """The identity of a task instance, which is the same in all of its tries.

    Attributes:
        dag_id: The DAG.
        run_id: Its run.
        run_after: When the run was due: a run that is deleted may be created again with the same id.
        task_id: The task.
        map_index: Its index, if it is mapped.
        loop: The iteration, if it is part of a loop.
    """

    dag_id: str
    run_id: str
    run_after: str
    task_id: str
    map_index: int
    loop: str = ""

    @classmethod
    def of(cls, context: Context) -> TaskKey:
        """Return the key of the running task."""
        values = cast("dict[str, Any]", context)
        task_instance, loop = values["ti"], values.get("loop")
        run_after = getattr(values.get("dag_run"), "run_after", None)
        return cls(
            task_instance.dag_id,
            task_instance.run_id,
            "" if run_after is None else run_after.isoformat(),
            task_instance.task_id,
            -1 if task_instance.map_index is None else task_instance.map_index,
            "" if loop is None else f"{task_instance.region_id} {loop.index}",
        )

    def submission_id(self, try_number: int, resubmission: int = 0) -> str:
        """Return the id of a submission of this task, which is the same in every process and every try.

        Args:
            try_number: The try that submits. No two tries share a number, even across clears.
            resubmission: The number of submissions that this try made before.
        """
        parts = (*astuple(self), try_number, resubmission)
        return str(uuid.uuid5(_NAMESPACE, "\x1f".join(map(str, parts))))
