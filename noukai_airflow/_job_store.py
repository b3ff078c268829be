"""What a task records about its job for its next try, so that no try submits the same job again.

Since Airflow 3.3, tasks have a state store that outlives retries. Older versions delete a task's XComs when a
retry starts, so there the ids of a task's submissions are derived from the identity of the task.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, cast

from noukai_core import SubmissionRecord

if TYPE_CHECKING:
    from airflow.sdk import Context

    from noukai_core import Job

_KEY = "noukai_job"
_OWN_FIELDS = ("max_tries", "abandoned", "wait_again")
_NAMESPACE = uuid.UUID("6f0d9c2e-2f0e-5c57-9d55-0a2f8f1a4c1b")


@dataclass(frozen=True, kw_only=True)
class JobRecord(SubmissionRecord):
    """The submission of a task, and its job as soon as there is one.

    Attributes:
        max_tries: The task's `max_tries`, which a clear raises and a retry does not.
        abandoned: Whether the task wants this job to end, so that the next try must not wait for it.
        wait_again: Whether the job was left running at its deadline, so that the next try waits for the same
            time again.
    """

    max_tries: int
    abandoned: bool = False
    wait_again: bool = False

    @classmethod
    def new(cls, max_tries: int, submission_id: str, flow: str) -> JobRecord:
        """Make the record of a submission that is about to be sent for the first time."""
        return cls(max_tries=max_tries, submission_id=submission_id, last_sent_at=_now(), flow=flow)

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
    def set(self, key: str, value: Any) -> None: ...
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
            self._store.set(_KEY, record.to_strings() | own)

    def change(self, **changes: Any) -> None:
        """Change fields of the stored record, if there is one."""
        if (record := self.read()) is not None:
            self.write(replace(record, **changes))

    def forget(self) -> None:
        """Delete the record, since it is certain that there is no job."""
        if self._store is not None:
            self._store.delete(_KEY)


def _now() -> datetime:
    return datetime.now(UTC)


def derived_submission_id(
    dag_id: str, run_id: str, task_id: str, map_index: int, max_tries: int, number: int
) -> str:
    """Return the id of a task's n-th submission, which is the same in every process and every try."""
    return str(
        uuid.uuid5(_NAMESPACE, "\x1f".join(map(str, (dag_id, run_id, task_id, map_index, max_tries, number))))
    )
