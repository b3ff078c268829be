"""What a task remembers of its job from one try to the next, so that none submits what another has.

Since Airflow 3.3 a task has a state store that outlives retries and clears. On older versions nothing does
(XComs are deleted when a retry begins), so there the identities of a task's submissions are derived from what
the task is.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from airflow.sdk import Context

    from noukai_core import Submission

_KEY = "noukai_job"
_NAMESPACE = uuid.UUID("6f0d9c2e-2f0e-5c57-9d55-0a2f8f1a4c1b")


@dataclass(frozen=True)
class JobRecord:
    """The submission of a task, and its job as soon as there is one.

    Attributes:
        generation: The task's `max_tries`, which a clear raises and a retry does not.
        submission_id: The identity of the submission.
        last_sent_at: When it was first sent, in ISO 8601.
        flow: The flow as `org/project/slug`.
        job_id: The job, once the server has accepted it.
        given_up: Whether the task wants this job to end, so that the next try must not wait for it.
        wait_again: Whether a deadline passed that left the job running, so that the next try waits as long
            again.
    """

    max_tries: int
    submission_id: str
    last_sent_at: str
    flow: str
    job_id: str | None = None
    abandoned: bool = False
    wait_again: bool = False

    @classmethod
    def new(cls, max_tries: int, submission_id: str, flow: str) -> JobRecord:
        """Begin a record for a submission that is about to be sent."""
        return cls(max_tries, submission_id, datetime.now(UTC).isoformat(), flow)

    @property
    def sent(self) -> datetime:
        """When the submission was first sent."""
        return datetime.fromisoformat(self.last_sent_at)

    def submission(self) -> Submission:
        """Return the identity in a form that makes the client ask the server first."""
        from noukai_core import Submission

        return Submission(self.submission_id, self.sent)


class Store(Protocol):
    """The part of Airflow's task state store that is used."""

    def get(self, key: str) -> Any: ...
    def set(self, key: str, value: Any) -> None: ...
    def delete(self, key: str) -> None: ...


class JobStore:
    """Where a task's record is kept. Without a store it forgets."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    @classmethod
    def of(cls, context: Context, *, durable: bool) -> JobStore:
        """Return the book of the running task."""
        store = cast("dict[str, Any]", context).get("task_state_store") if durable else None
        return cls(store)

    @property
    def is_durable(self) -> bool:
        """Whether what is written is there in the next try."""
        return self._store is not None

    def read(self) -> JobRecord | None:
        """Return the record, unless there is none that makes sense."""
        kept = self._store.get(_KEY) if self._store is not None else None
        if not isinstance(kept, dict):
            return None
        fields = cast("dict[str, Any]", kept)
        known = {name: fields[name] for name in JobRecord.__dataclass_fields__ if name in fields}
        try:
            record = JobRecord(**known)
            return record if record.sent.tzinfo else None
        except (TypeError, ValueError):
            return None

    def write(self, record: JobRecord) -> None:
        """Keep a record in the place of the one before."""
        if self._store is not None:
            self._store.set(_KEY, asdict(record))

    def change(self, **changes: Any) -> None:
        """Change parts of the record that is kept."""
        if (record := self.read()) is not None:
            self.write(replace(record, **changes))

    def forget(self) -> None:
        """Drop the record: there surely is no job."""
        if self._store is not None:
            self._store.delete(_KEY)


def derived_submission_id(
    dag_id: str, run_id: str, task_id: str, map_index: int, max_tries: int, number: int
) -> str:
    """Return the identity of a task's n-th submission, the same in every process and every try."""
    return str(
        uuid.uuid5(_NAMESPACE, "\x1f".join(map(str, (dag_id, run_id, task_id, map_index, max_tries, number))))
    )
