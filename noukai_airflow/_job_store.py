"""What a task records about its job for its next try, so that no try submits the same job again.

Since Airflow 3.3, tasks have a state store that outlives retries. Since 3.4, a clear discards it unless the
user keeps it. Older versions delete a task's XComs when a retry starts. So the ids of a task's submissions
are derived from the identity of the task, and lead to its jobs where nothing is stored.
"""

from __future__ import annotations

import hmac
import uuid
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, cast

from noukai_core import SubmissionRecord

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

    from noukai_core import Job

RECORD_KEY = "noukai_job"
"""The key of the record in the task's state store, or of the XCom that stands in for it."""

_OWN_FIELDS = (
    "max_tries",
    "abandoned",
    "wait_again",
    "delivered",
    "try_number",
    "resubmission",
    "cancel_with",
)


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
        cancel_with: The Airflow connection with which the job may be cancelled when a user ends the task;
            `None` if it may not.
    """

    max_tries: int
    abandoned: bool = False
    wait_again: bool = False
    delivered: bool = False
    try_number: int = 0
    resubmission: int = 0
    cancel_with: str | None = None

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


class _XComs:
    """Stands in for the state store of a task. Airflow deletes what it keeps when the next try starts."""

    def __init__(self, task_instance: RuntimeTaskInstanceProtocol) -> None:
        self._task = task_instance

    def get(self, key: str) -> Any:
        return self._task.xcom_pull(task_ids=self._task.task_id, key=key, map_indexes=self._task.map_index)

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self._task.xcom_push(key, value)

    def delete(self, key: str) -> None:
        self._task.xcom_push(key, None)


class JobStore:
    """Keeps the record of a task. Without a store nothing is kept.

    The API server reads the record too, when a user ends the task.

    Args:
        store: Where the record is kept.
        durable: Whether the next try can read what is written.
        cancel_with: The connection with which the job may be cancelled when a user ends the task, if it may.
    """

    def __init__(self, store: Store | None, *, durable: bool = True, cancel_with: str | None = None) -> None:
        self._store = store
        self._durable = durable
        self._cancel_with = cancel_with

    @classmethod
    def of(
        cls, context: Context, *, durable: bool, push_xcoms: bool = False, cancel_with: str | None = None
    ) -> JobStore:
        """Return the job store of the running task.

        Args:
            context: The task's context.
            durable: Whether the next try is to read what is written.
            push_xcoms: Whether an XCom may stand in for the state store. It is for the API server alone.
            cancel_with: See the class.
        """
        values = cast("dict[str, Any]", context)
        store = values.get("task_state_store") if durable else None
        if store is not None:
            return cls(store, cancel_with=cancel_with)
        if push_xcoms and cancel_with is not None:
            return cls(_XComs(values["ti"]), durable=False, cancel_with=cancel_with)
        return cls(None)

    @property
    def is_durable(self) -> bool:
        """Whether the next try can read what is written."""
        return self._store is not None and self._durable

    def read(self) -> JobRecord | None:
        """Return the record, or `None` if there is none or it is malformed."""
        return read_record(self._store.get(RECORD_KEY)) if self._store is not None else None

    def is_replaced(self) -> bool:
        """Return whether Airflow has begun another try of the task although this one still runs.

        Each try has its own id in Airflow, and the id of an earlier try leads to no record. Airflow is asked
        twice: a time limit that strikes inside one of its requests leaves a response behind, which it takes
        for the response to the next request.
        """
        store = self._store
        try:
            return self._durable and store is not None and not any(store.get(RECORD_KEY) for _ in range(2))
        except Exception:
            return False

    def write(self, record: JobRecord) -> None:
        """Store a record in place of the previous one."""
        if self._store is not None:
            record = self.with_options(record)
            own = {name: getattr(record, name) for name in _OWN_FIELDS}
            self._store.set(RECORD_KEY, record.to_strings() | own, retention=never_expire())

    def with_options(self, record: JobRecord) -> JobRecord:
        """Return the record of an earlier try with what this try allows."""
        return replace(record, cancel_with=self._cancel_with)

    def change(self, **changes: Any) -> None:
        """Change fields of the stored record, if there is one."""
        if (record := self.read()) is not None:
            self.write(replace(record, **changes))

    def mark_delivered(self) -> None:
        """Record that the task has returned the job's result, so that a clear leads to a new job.

        Only Airflow 3.4 and later read this, but they also read what earlier versions have written.
        """
        self.change(delivered=True)

    def forget(self) -> None:
        """Delete the record, since it is certain that there is no job."""
        if self._store is not None:
            self._store.delete(RECORD_KEY)


def read_record(stored: object) -> JobRecord | None:
    """Return the record in its stored form, or `None` if there is none or it is malformed."""
    if not isinstance(stored, dict):
        return None
    fields = cast("dict[str, Any]", stored)
    own = {name: fields[name] for name in _OWN_FIELDS if name in fields}
    try:
        record = JobRecord.from_strings(fields, **own)
    except (TypeError, ValueError):
        return None
    return record if record.last_sent_at else None


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
        run_after: When the run was due: a manual run that is deleted may be created again with the same id.
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

    def submission_id(self, api_key: str, try_number: int, resubmission: int = 0) -> str:
        """Return the id of a submission of this task, which is the same in every process and every try.

        Two Airflows may run the same DAG, and their runs then have the same ids. With one id, each would take
        the jobs of the other for its own.

        Args:
            api_key: The key of the connection, by which Airflows differ.
            try_number: The try that submits. No two tries share a number, even across clears.
            resubmission: The number of submissions that this try made before.
        """
        parts = "\x1f".join(map(str, (*astuple(self), try_number, resubmission)))
        digest = hmac.digest(api_key.encode(), parts.encode(), "sha256")
        return str(uuid.UUID(bytes=digest[:16], version=5))
