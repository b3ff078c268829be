"""What a flow run knows of the jobs it has submitted, kept on the Prefect server.

Each submission has an identity that follows from the flow run and the inputs, so a rerun computes the same
one. It is written down as an artifact before the request is made, and the job's id right after. A rerun, in
whichever process or container, reads them, and attaches to the job that is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import uuid
import weakref
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    ArtifactFilterTaskRunId,
    FlowRunFilter,
)
from prefect.client.schemas.objects import Artifact

from noukai_core import AsyncJob, Submission
from noukai_prefect._run_context import RunContext

T = TypeVar("T")

ARTIFACT_KEY = "noukai-job"

_PAGE = 200
_READ_PAUSE = 0.05
_NAMESPACE = uuid.UUID("5d1f62a4-32b1-4d0a-8c0e-6f3f9f0f1b7e")


@dataclass(frozen=True)
class JobRecord:
    """One submission of a flow run.

    Attributes:
        identity: The submission's id.
        flow: The Noukai flow, as `org/project/slug`.
        place: Which of the run's submissions it is; a retry after a failed job has the same place.
        generation: How many jobs came before it in its place.
        last_sent_at: When it may first have been sent; `None` when it surely never was.
        job_id: The job, once it is known.
        ended: Whether this flow run has seen it end badly, or cancelled it; then a new one takes its place.
        credentials: The name of the stored block whose key the job was submitted with, if it is one.
        artifact_id: Where it is kept.
    """

    submission_id: str
    flow: str
    slot: str
    resubmission: int = 0
    last_sent_at: datetime | None = None
    job_id: str | None = None
    ended: bool = False
    credentials: str | None = None
    artifact_id: uuid.UUID | None = None

    @property
    def submission(self) -> Submission:
        """The identity as the job client takes it."""
        return Submission(self.submission_id, self.last_sent_at)

    def next(self) -> JobRecord:
        """Return the record of the job that takes this one's place."""
        return replace(_new_record(self.flow, self.slot, self.resubmission + 1), credentials=self.credentials)

    def metadata(self) -> dict[str, str]:
        """Return it as an artifact keeps it."""
        kept = {
            "identity": self.submission_id,
            "flow": self.flow,
            "place": self.slot,
            "generation": str(self.resubmission),
            "last_sent_at": self.last_sent_at.isoformat() if self.last_sent_at else None,
            "job_id": self.job_id,
            "ended": "true" if self.ended else None,
            "credentials": self.credentials,
        }
        return {name: value for name, value in kept.items() if value is not None}

    @classmethod
    def read(cls, metadata: Mapping[str, str], artifact_id: uuid.UUID | None) -> JobRecord | None:
        """Read what an artifact keeps; `None` when it is not a record."""
        try:
            last_sent_at = metadata.get("last_sent_at")
            return cls(
                submission_id=metadata["identity"],
                flow=metadata["flow"],
                slot=metadata["place"],
                resubmission=int(metadata["generation"]),
                last_sent_at=datetime.fromisoformat(last_sent_at) if last_sent_at else None,
                job_id=metadata.get("job_id"),
                ended="ended" in metadata,
                credentials=metadata.get("credentials"),
                artifact_id=artifact_id,
            )
        except (KeyError, ValueError):
            return None


# The task run that submits, if there is one, and what it submits.
_Caller: TypeAlias = tuple[uuid.UUID | None, str]


class JobStore:
    """The records of a flow run, or of a task run that has no flow, for one attempt of it."""

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
        """Return the record of a submission: the latest in its place, or a new one."""
        await self._read_once(run)
        slot = self.slot(run, flow, inputs)
        return self._latest.get(slot) or _new_record(flow, slot, 0)

    async def keep(self, run: RunContext, record: JobRecord, shown: str | None) -> JobRecord:
        """Write a record down, before the request and again with the job's id.

        Args:
            run: Where the job is submitted.
            record: The record.
            shown: What people read; `None` for what they read already.
        """
        if record.artifact_id is not None:
            with self._lock:
                self._latest[record.slot] = record
        async with get_client() as client:
            if record.artifact_id is None:
                artifact = await client.create_artifact(
                    ArtifactCreate(
                        key=ARTIFACT_KEY,
                        type="markdown",
                        description=f"A Noukai job of {record.flow}",
                        data=shown,
                        metadata_=record.metadata(),
                        flow_run_id=run.flow_run_id,
                        task_run_id=run.task_run_id,
                    )
                )
                record = replace(record, artifact_id=artifact.id)
            else:
                kept = record.metadata()
                update = (
                    ArtifactUpdate(data=shown, metadata_=kept) if shown else ArtifactUpdate(metadata_=kept)
                )
                await client.update_artifact(record.artifact_id, update)
        with self._lock:
            self._latest[record.slot] = record
        return record

    async def end(self, run: RunContext, job: AsyncJob, submission: Submission | None) -> None:
        """Write down that a job has ended badly, if it is one of this book's."""
        submission_id = submission.id if submission else None
        with self._lock:
            kept = self._latest.values()
            found = next(
                (one for one in kept if one.job_id == job.id or one.submission_id == submission_id), None
            )
        if found is None or found.ended:
            return
        shown = None if found.job_id else f"Noukai job `{job.id}` of `{job.flow}`"
        await self.keep(run, replace(found, job_id=job.id, ended=True), shown)

    def slot(self, run: RunContext, flow: str, inputs: Mapping[str, Any]) -> str:
        """Tell equal submissions of one attempt apart by their number, which the retry of a task keeps."""
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
        """Read what earlier attempts have written down; of many tasks that begin together, one does."""
        while not self._read:
            with self._lock:
                mine, self._being_read = not self._being_read, True
            if not mine:
                # Tasks in threads have event loops of their own, which have nothing to wait for in common.
                await asyncio.sleep(_READ_PAUSE)
                continue
            try:
                kept = _records_in(await own_artifacts(run, ARTIFACT_KEY))
                self._latest.update({record.slot: record for record in kept})
                self._read = True
            finally:
                self._being_read = False


# By the identity of what stands for the attempt, which a book does not outlive.
_stores: dict[int, JobStore] = {}
_stores_lock = threading.Lock()


def store_of(run: RunContext) -> JobStore | None:
    """Return the book of the current run; `None` outside of any."""
    if run.scope is None or run.attempt is None:
        return None
    number = id(run.attempt)
    with _stores_lock:
        if number not in _stores:
            _stores[number] = JobStore(run.scope)
            weakref.finalize(run.attempt, _stores.pop, number)
        return _stores[number]


async def read_records(scopes: Sequence[uuid.UUID]) -> list[JobRecord]:
    """Return what runs have written down, the latest of each place last; for scopes see `artifacts_of`."""
    return _records_in(await artifacts_of(scopes, ARTIFACT_KEY))


def _records_in(artifacts: Sequence[Artifact]) -> list[JobRecord]:
    found = [JobRecord.read(kept.metadata_ or {}, kept.id) for kept in artifacts]
    return sorted(
        (record for record in found if record),
        key=lambda record: (record.resubmission, record.job_id is not None),
    )


async def own_artifacts(run: RunContext, key: str) -> list[Artifact]:
    """Return the artifacts with a key of all attempts of a flow run, or of a task run that has no flow."""
    if run.flow_run_id is not None:
        return await artifacts_of([run.called_by or run.flow_run_id], key)
    if run.task_run_id is None:
        return []
    mine = ArtifactFilterTaskRunId(any_=[run.task_run_id])
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]), task_run_id=mine)
    async with get_client() as client:
        return await _every_page(client.read_artifacts, artifact_filter=wanted)


async def artifacts_of(scopes: Sequence[uuid.UUID], key: str) -> list[Artifact]:
    """Return the artifacts with a key; a scope is a flow run, or the task run that stands for a subflow."""
    either: dict[str, Any] = {"any_": list(scopes)}
    runs = FlowRunFilter.model_validate({"operator": "or_", "id": either, "parent_task_run_id": either})
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    async with get_client() as client:
        return await _every_page(client.read_artifacts, artifact_filter=wanted, flow_run_filter=runs)


async def with_subflows(flow_run_id: uuid.UUID) -> list[uuid.UUID]:
    """Return a flow run, the subflows that it has called, and what these have called."""
    found: list[uuid.UUID] = []
    resubmission = [flow_run_id]
    async with get_client() as client:
        while resubmission:
            found += resubmission
            called: dict[str, Any] = {"parent_flow_run_id": {"any_": resubmission}}
            below = await _every_page(
                client.read_flow_runs, flow_run_filter=FlowRunFilter.model_validate(called)
            )
            resubmission = [flow_run.id for flow_run in below]
    return found


async def _every_page(read: Callable[..., Awaitable[list[T]]], **wanted: Any) -> list[T]:
    found: list[T] = []
    while True:
        page = await read(**wanted, limit=_PAGE, offset=len(found))
        found += page
        if len(page) < _PAGE:
            return found


async def note_end(run: RunContext, job: AsyncJob, submission: Submission | None = None) -> None:
    """Write down that a job of this run has ended badly. Without Prefect's server that is only a warning.

    Args:
        run: Where it was submitted or waited for.
        job: The job.
        submission: Its submission, where only that was known.
    """
    if store := store_of(run):
        try:
            await store.end(run, job, submission)
        except Exception as error:
            run.logger().warning("The end of Noukai job %s could not be noted in Prefect: %s", job.id, error)


async def mark_ended(record: JobRecord) -> None:
    """Write down that the job of a record has ended badly, so that a rerun submits a new one."""
    if record.artifact_id is not None:
        async with get_client() as client:
            update = ArtifactUpdate(metadata_=replace(record, ended=True).metadata())
            await client.update_artifact(record.artifact_id, update)


def now() -> datetime:
    """Return the time as records keep it."""
    return datetime.now(UTC)


def _digest(submitted: Any) -> str:
    try:
        written = json.dumps(submitted, sort_keys=True, default=repr)
    except (TypeError, ValueError):
        written = repr(submitted)  # the job client refuses such inputs, and says why
    return hashlib.sha256(written.encode()).hexdigest()


def _new_record(flow: str, slot: str, resubmission: int) -> JobRecord:
    return JobRecord(str(uuid.uuid5(_NAMESPACE, f"{slot}:{resubmission}")), flow, slot, resubmission)
