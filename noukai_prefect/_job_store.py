"""What a flow run knows about the jobs that it submitted, kept on the Prefect server.

The id of each submission follows from the flow run and the inputs, so a rerun computes the same one. It is
stored as an artifact before the request, and the job's id right after. A rerun in any process or container
reads these records, and attaches to the existing job.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import uuid
import weakref
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import Artifact

from noukai_core import AsyncJob, Submission, SubmissionRecord
from noukai_prefect._artifacts import artifacts_of, own_artifacts
from noukai_prefect._run_context import RunContext

JOB_KEY = "noukai-job"

_READ_PAUSE = 0.05
_NAMESPACE = uuid.UUID("5d1f62a4-32b1-4d0a-8c0e-6f3f9f0f1b7e")


@dataclass(frozen=True, kw_only=True)
class JobRecord(SubmissionRecord):
    """One submission of a flow run.

    Attributes:
        slot: Which of the run's submissions it is. A retry after a failed job has the same slot.
        resubmission: How many jobs preceded it in its slot.
        ended: Whether this flow run saw it fail, or cancelled it. The next attempt then submits a new job.
        credentials: The name of the stored block whose key submitted the job, if it is a stored one.
        artifact_id: The artifact that keeps the record.
    """

    slot: str
    resubmission: int = 0
    ended: bool = False
    credentials: str | None = None
    artifact_id: uuid.UUID | None = None

    def next(self) -> JobRecord:
        """Return the record of the job that replaces this one."""
        return replace(_new_record(self.flow, self.slot, self.resubmission + 1), credentials=self.credentials)

    def metadata(self) -> dict[str, str]:
        """Return it as the metadata of an artifact."""
        own = {
            "slot": self.slot,
            "resubmission": str(self.resubmission),
            "ended": "true" if self.ended else None,
            "credentials": self.credentials,
        }
        return self.to_strings() | {name: value for name, value in own.items() if value is not None}

    @classmethod
    def read(cls, metadata: Mapping[str, str], artifact_id: uuid.UUID | None) -> JobRecord | None:
        """Read the metadata of an artifact; `None` when they are no record."""
        try:
            return cls.from_strings(
                metadata,
                slot=metadata["slot"],
                resubmission=int(metadata["resubmission"]),
                ended="ended" in metadata,
                credentials=metadata.get("credentials"),
                artifact_id=artifact_id,
            )
        except (KeyError, ValueError):
            return None


# The task run that submits, if there is one, and a digest of what it submits.
_Caller: TypeAlias = tuple[uuid.UUID | None, str]


class JobStore:
    """The records of one attempt of a flow run, or of a task run that has no flow."""

    def __init__(self, scope: uuid.UUID) -> None:
        self._scope = scope
        self._latest: dict[str, JobRecord] = {}
        self._slots: defaultdict[_Caller, list[str]] = defaultdict(list)
        self._turns: Counter[tuple[_Caller, int]] = Counter()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._being_read = False
        self._read = False

    async def record(self, run: RunContext, flow: str, inputs: Mapping[str, Any]) -> JobRecord:
        """Return the record of a submission: the latest in its slot, or a new one."""
        await self._read_once(run)
        slot = self.slot(run, flow, inputs)
        return self._latest.get(slot) or _new_record(flow, slot, 0)

    async def store(self, run: RunContext, record: JobRecord, text: str | None) -> JobRecord:
        """Store a record, before the request and again with the job's id.

        Args:
            run: Where the code runs.
            record: The record.
            text: The artifact's text; `None` to leave it as it is.
        """
        if record.artifact_id is not None:
            with self._lock:
                self._latest[record.slot] = record
        async with get_client() as client:
            if record.artifact_id is None:
                artifact = await client.create_artifact(
                    ArtifactCreate(
                        key=JOB_KEY,
                        type="markdown",
                        description=f"A Noukai job of {record.flow}",
                        data=text,
                        metadata_=record.metadata(),
                        flow_run_id=run.flow_run_id,
                        task_run_id=run.task_run_id,
                    )
                )
                record = replace(record, artifact_id=artifact.id)
            else:
                stored = record.metadata()
                update = (
                    ArtifactUpdate(data=text, metadata_=stored) if text else ArtifactUpdate(metadata_=stored)
                )
                await client.update_artifact(record.artifact_id, update)
        with self._lock:
            self._latest[record.slot] = record
        return record

    async def record_end(self, run: RunContext, job: AsyncJob, submission: Submission | None) -> None:
        """Record that a job failed or was cancelled, if this store has its record."""
        submission_id = submission.id if submission else None
        with self._lock:
            records = self._latest.values()
            found = next(
                (one for one in records if one.job_id == job.id or one.submission_id == submission_id), None
            )
        if found is None or found.ended:
            return
        text = None if found.job_id else f"Noukai job `{job.id}` of `{job.flow}`"
        await self.store(run, replace(found, job_id=job.id, ended=True), text)

    def slot(self, run: RunContext, flow: str, inputs: Mapping[str, Any]) -> str:
        """Return the slot of a submission. Equal submissions of one attempt are told apart by a number.

        The retry of a task gets the numbers of its earlier tries.
        """
        digest = _digest([flow, inputs])
        caller = (run.task_run_id, digest)
        with self._lock:
            slots = self._slots[caller]
            turn = self._turns[caller, run.task_attempt]
            self._turns[caller, run.task_attempt] += 1
            if turn == len(slots):
                number = self._counts[digest]
                self._counts[digest] += 1
                slots.append(str(uuid.uuid5(_NAMESPACE, f"{self._scope}:{digest}:{number}")))
            return slots[turn]

    async def _read_once(self, run: RunContext) -> None:
        """Read the records of earlier attempts. When many tasks begin together, only one does it."""
        while not self._read:
            with self._lock:
                reads, self._being_read = not self._being_read, True
            if not reads:
                # Tasks in threads have separate event loops, which share nothing that could be awaited.
                await asyncio.sleep(_READ_PAUSE)
                continue
            try:
                records = _records_in(await own_artifacts(run, JOB_KEY))
                self._latest.update({record.slot: record for record in records})
                self._read = True
            finally:
                self._being_read = False


# By the identity of the object that represents the attempt, which a store does not outlive.
_stores: dict[int, JobStore] = {}
_stores_lock = threading.Lock()


def store_of(run: RunContext) -> JobStore | None:
    """Return the store of the current run; `None` outside a run."""
    if run.scope is None or run.attempt is None:
        return None
    number = id(run.attempt)
    with _stores_lock:
        if number not in _stores:
            _stores[number] = JobStore(run.scope)
            weakref.finalize(run.attempt, _stores.pop, number)
        return _stores[number]


async def read_records(scopes: Sequence[uuid.UUID]) -> list[JobRecord]:
    """Return the records of runs, the latest of each slot last; for scopes see `artifacts_of`."""
    return _records_in(await artifacts_of(scopes, JOB_KEY))


def _records_in(artifacts: Sequence[Artifact]) -> list[JobRecord]:
    found = [JobRecord.read(artifact.metadata_ or {}, artifact.id) for artifact in artifacts]
    return sorted(
        (record for record in found if record),
        key=lambda record: (record.resubmission, record.job_id is not None),
    )


async def record_end(run: RunContext, job: AsyncJob, submission: Submission | None = None) -> None:
    """Record that a job of this run failed or was cancelled. A failure to do so is only logged.

    Args:
        run: Where the code runs.
        job: The job.
        submission: The submission, if the record may not have the job's id yet.
    """
    if store := store_of(run):
        try:
            await store.record_end(run, job, submission)
        except Exception as error:
            run.logger().warning("Noukai job %s of %s: not recorded (%s)", job.id, job.flow, error)


async def mark_ended(record: JobRecord) -> None:
    """Record that a job failed or was cancelled, so that a rerun submits a new one."""
    if record.artifact_id is not None:
        async with get_client() as client:
            update = ArtifactUpdate(metadata_=replace(record, ended=True).metadata())
            await client.update_artifact(record.artifact_id, update)


def now() -> datetime:
    """Return the current time, in the form of the records."""
    return datetime.now(UTC)


def _digest(submitted: Any) -> str:
    try:
        text = json.dumps(submitted, sort_keys=True, default=repr)
    except (TypeError, ValueError):
        text = repr(submitted)  # the job client rejects such inputs with an explanation
    return hashlib.sha256(text.encode()).hexdigest()


def _new_record(flow: str, slot: str, resubmission: int) -> JobRecord:
    submission_id = str(uuid.uuid5(_NAMESPACE, f"{slot}:{resubmission}"))
    return JobRecord(submission_id=submission_id, flow=flow, slot=slot, resubmission=resubmission)
