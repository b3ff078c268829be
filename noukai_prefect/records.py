"""What a flow run knows of the jobs it has submitted, kept on the Prefect server.

Each submission has an identity that follows from the flow run and the inputs, so a rerun computes the same
one. It is written down as an artifact before the request is made, and the job's id right after. A rerun, in
whichever process or container, reads them, and attaches to the job that is there.
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter
from prefect.client.schemas.objects import Artifact

from noukai_core import Submission

from .context import RunContext

ARTIFACT_KEY = "noukai-job"

_PAGE = 200
_NAMESPACE = uuid.UUID("5d1f62a4-32b1-4d0a-8c0e-6f3f9f0f1b7e")


@dataclass(frozen=True)
class JobRecord:
    """One submission of a flow run.

    Attributes:
        identity: The submission's id.
        flow: The Noukai flow, as `org/project/slug`.
        place: Which of the run's submissions it is; a retry after a failed job has the same place.
        generation: How many jobs came before it in its place.
        sent_at: When it may first have been sent; `None` when it surely never was.
        job_id: The job, once it is known.
        ended: Whether this flow run has seen it end badly, or cancelled it; then a new one takes its place.
        artifact_id: Where it is kept.
    """

    identity: str
    flow: str
    place: str
    generation: int = 0
    sent_at: datetime | None = None
    job_id: str | None = None
    ended: bool = False
    artifact_id: uuid.UUID | None = None

    @property
    def submission(self) -> Submission:
        """The identity as the job client takes it."""
        return Submission(self.identity, self.sent_at)

    def next(self) -> JobRecord:
        """Return the record of the job that takes this one's place."""
        return _new_record(self.flow, self.place, self.generation + 1)

    def metadata(self) -> dict[str, str]:
        """Return it as an artifact keeps it."""
        kept = {
            "identity": self.identity,
            "flow": self.flow,
            "place": self.place,
            "generation": str(self.generation),
            "sent_at": self.sent_at.isoformat() if self.sent_at else None,
            "job_id": self.job_id,
            "ended": "true" if self.ended else None,
        }
        return {name: value for name, value in kept.items() if value is not None}

    @classmethod
    def read(cls, metadata: Mapping[str, str], artifact_id: uuid.UUID | None) -> JobRecord | None:
        """Read what an artifact keeps; `None` when it is not a record."""
        try:
            sent_at = metadata.get("sent_at")
            return cls(
                identity=metadata["identity"],
                flow=metadata["flow"],
                place=metadata["place"],
                generation=int(metadata["generation"]),
                sent_at=datetime.fromisoformat(sent_at) if sent_at else None,
                job_id=metadata.get("job_id"),
                ended="ended" in metadata,
                artifact_id=artifact_id,
            )
        except (KeyError, ValueError):
            return None


# The flow run and its attempt, and what is submitted; and the task run that submits, if there is one.
_Attempt: TypeAlias = tuple[uuid.UUID | None, int, str]
_Caller: TypeAlias = tuple[uuid.UUID | None, _Attempt]


class JobBook:
    """The records of one flow run, or of a task run that has no flow."""

    def __init__(self, scope: uuid.UUID) -> None:
        self._scope = scope
        self._latest: dict[str, JobRecord] = {}
        self._places: defaultdict[_Caller, list[str]] = defaultdict(list)
        self._turns: Counter[tuple[_Caller, int]] = Counter()
        self._counts: Counter[_Attempt] = Counter()
        self._lock = threading.Lock()
        self._read = False

    async def record(self, run: RunContext, flow: str, inputs: Mapping[str, Any]) -> JobRecord:
        """Return the record of a submission: the latest in its place, or a new one."""
        if not self._read:
            await self._read_artifacts()
        place = self.place(run, flow, inputs)
        return self._latest.get(place) or _new_record(flow, place, 0)

    async def keep(self, run: RunContext, record: JobRecord, shown: str) -> JobRecord:
        """Write a record down, before the request and again with the job's id."""
        if record.artifact_id is not None:
            with self._lock:
                self._latest[record.place] = record
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
                await client.update_artifact(
                    record.artifact_id, ArtifactUpdate(data=shown, metadata_=record.metadata())
                )
        with self._lock:
            self._latest[record.place] = record
        return record

    async def end(self, job_id: str) -> None:
        """Write down that a job has ended badly, if it is one of this book's."""
        with self._lock:
            found = next((record for record in self._latest.values() if record.job_id == job_id), None)
            if found is None or found.ended:
                return
            self._latest[found.place] = replace(found, ended=True)
        await mark_ended(found)

    def place(self, run: RunContext, flow: str, inputs: Mapping[str, Any]) -> str:
        """Tell equal submissions of one attempt apart by their number, which the retry of a task keeps."""
        digest = hashlib.sha256(json.dumps([flow, inputs], sort_keys=True, default=repr).encode()).hexdigest()
        attempt = (run.flow_run_id, run.attempt, digest)
        caller = (run.task_run_id, attempt)
        with self._lock:
            places = self._places[caller]
            turn = self._turns[caller, run.task_attempt]
            self._turns[caller, run.task_attempt] += 1
            if turn == len(places):
                number = self._counts[attempt]
                self._counts[attempt] += 1
                places.append(str(uuid.uuid5(_NAMESPACE, f"{self._scope}:{digest}:{number}")))
            return places[turn]

    async def _read_artifacts(self) -> None:
        for record in await read_records(self._scope):
            known = self._latest.get(record.place)
            if known is None or known.generation <= record.generation:
                self._latest[record.place] = record
        self._read = True


_books: dict[uuid.UUID, JobBook] = {}
_books_lock = threading.Lock()


def book_of(run: RunContext) -> JobBook | None:
    """Return the book of the current run; `None` outside of any."""
    if run.scope is None:
        return None
    with _books_lock:
        return _books.setdefault(run.scope, JobBook(run.scope))


async def read_records(scope: uuid.UUID) -> list[JobRecord]:
    """Return what a flow run, or each flow run of a subflow's call, has written down, the oldest first."""
    found = [
        JobRecord.read(kept.metadata_ or {}, kept.id) for kept in await artifacts_of(scope, ARTIFACT_KEY)
    ]
    return sorted((record for record in found if record), key=lambda record: record.generation)


async def artifacts_of(scope: uuid.UUID, key: str) -> list[Artifact]:
    """Return the artifacts with a key; the scope is a flow run or the task run that stands for a subflow."""
    either: dict[str, Any] = {"any_": [scope]}
    runs = FlowRunFilter.model_validate({"operator": "or_", "id": either, "parent_task_run_id": either})
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    found: list[Artifact] = []
    async with get_client() as client:
        while True:
            page = await client.read_artifacts(
                artifact_filter=wanted, flow_run_filter=runs, limit=_PAGE, offset=len(found)
            )
            found += page
            if len(page) < _PAGE:
                return found


async def note_end(run: RunContext, job_id: str) -> None:
    """Write down that a job of this run has ended badly. Without Prefect's server that is only a warning."""
    if book := book_of(run):
        try:
            await book.end(job_id)
        except Exception as error:
            run.logger().warning("The end of Noukai job %s could not be noted in Prefect: %s", job_id, error)


async def mark_ended(record: JobRecord) -> None:
    """Write down that the job of a record has ended badly, so that a rerun submits a new one."""
    if record.artifact_id is not None:
        async with get_client() as client:
            update = ArtifactUpdate(metadata_=replace(record, ended=True).metadata())
            await client.update_artifact(record.artifact_id, update)


def now() -> datetime:
    """Return the time as records keep it."""
    return datetime.now(UTC)


def _new_record(flow: str, place: str, generation: int) -> JobRecord:
    return JobRecord(str(uuid.uuid5(_NAMESPACE, f"{place}:{generation}")), flow, place, generation)
