"""What a flow run knows about a batch of jobs: a table for people, and a record for a rerun.

One artifact per job would keep Prefect's server busy for longer than the jobs run, so a batch has two: the
table, and the record, which Prefect's web page does not show. Both are written before the first request, and
then every few seconds. What a crash prevents them from recording follows from the ids of the submissions,
which are derived from the batch's slot in the run.

Each row of the record is signed separately, so a row that was changed affects no other row.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeAlias

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterId
from prefect.client.schemas.objects import Artifact

from noukai_core import JobState, Submission
from noukai_prefect._artifacts import BATCH_RECORDS, artifact_key, own_artifacts, scoped_artifacts
from noukai_prefect._job_store import JobRecord, now
from noukai_prefect._run_context import RunContext
from noukai_prefect._signing import RecordSigner
from noukai_prefect._text import dollars, markdown
from noukai_prefect.credentials import NoukaiCredentials

WRITE_SECONDS = 5.0
"""The shortest time between two writes of a batch of up to a thousand jobs."""

_UNSUCCESSFUL = ("failed", "cancelled")
_ENDED = ("completed", *_UNSUCCESSFUL)
_MAX_SHOWN_INPUT = 60

Content: TypeAlias = dict[str, str]


@dataclass(slots=True)
class BatchRow:
    """One job of a batch.

    Attributes:
        index: The position of its input.
        input: The beginning of its input.
        resubmission: How many jobs preceded it for this input.
        job_id: The job, once it is known.
        state: The job's state; before and instead of a job, what happens to the submission.
        seconds: From the submission, or from attaching to an earlier job, to the end.
        tokens: The tokens of the job's trace.
        cost_usd: The cost of the job's trace in US dollars.
        reason: Why the job did not complete.
        sent: Whether its submission may have been sent, now or by an earlier attempt, and was not rejected.
        never_sent: Whether no earlier attempt can have sent its submission.
        possibly_sent_at: When an earlier attempt may last have sent it, if that differs from the batch's.
    """

    index: int
    input: str = ""
    resubmission: int = 0
    job_id: str | None = None
    state: str = "waiting"
    seconds: float | None = None
    tokens: int | None = None
    cost_usd: Decimal | None = None
    reason: str | None = None
    sent: bool = False
    never_sent: bool = False
    possibly_sent_at: datetime | None = None

    @property
    def may_have_job(self) -> bool:
        """Whether there may be a job whose id is not known."""
        return self.sent and self.job_id is None

    @property
    def unfinished(self) -> bool:
        """Whether there is a job that was not seen to end, even if nothing waits for it any more."""
        return self.job_id is not None and self.state not in _ENDED

    @property
    def unsuccessful(self) -> bool:
        """Whether it ended without an output."""
        return self.reason is not None or self.state in _UNSUCCESSFUL

    def replace_job(self) -> None:
        """Prepare for a new job."""
        self.resubmission, self.job_id, self.sent, self.state = self.resubmission + 1, None, False, "waiting"
        self.reason = None

    def as_table_row(self, page: str | None) -> dict[str, Any]:
        """Return it as a row of the table.

        Args:
            page: The address of the job's page, if there is one.
        """
        return {
            "#": self.index,
            "input": markdown(self.input, _MAX_SHOWN_INPUT),
            "state": markdown(self.state),
            "reason": markdown(self.reason) if self.reason else None,
            # Prefect's newer web page shows the cells of a table as text, not as Markdown.
            "job": markdown(self.job_id) if self.job_id else None,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "cost": dollars(self.cost_usd) if self.cost_usd is not None else None,
            "page": page,
        }


class BatchTable:
    """The table and the record of one batch.

    Args:
        run: Where the batch runs.
        slot: Which of the flow run's batches it is; a UUID that is the same in each attempt.
        flow: The Noukai flow.
        inputs: The beginning of each input.
        credentials: The credentials that submit the jobs.

    Attributes:
        rows: The jobs, in the order of the inputs.
        written_at: When an earlier attempt last wrote the record. No job in it was submitted later.
    """

    def __init__(
        self, run: RunContext, slot: str, flow: str, inputs: Sequence[str], credentials: NoukaiCredentials
    ) -> None:
        self.rows = [BatchRow(index, text) for index, text in enumerate(inputs)]
        self.written_at: datetime | None = None
        self._run = run
        self._slot = slot
        self._flow = flow
        self._credentials = credentials
        self._signer = RecordSigner(credentials.api_key, run.scope or uuid.UUID(slot))
        self._table: uuid.UUID | None = None
        self._record: uuid.UUID | None = None
        self._possibly_sent_at: datetime | None = None
        self._pause = max(WRITE_SECONDS, WRITE_SECONDS * len(inputs) / 1000)
        self._next_write = 0.0

    async def open(self) -> None:
        """Read what an earlier attempt wrote, and record that jobs may be submitted from now on."""
        if self._run.scope is None:
            return
        stored = [
            batch
            for artifact in await own_artifacts(self._run, BATCH_RECORDS)
            if (batch := StoredBatch.read(artifact, self._run.scope)) and batch.slot == self._slot
        ]
        for batch in stored:
            if batch.verified_by(self._signer):
                self._load(batch)
        if self._record is None and stored:
            # The record was changed, or another key signed it. The server knows which jobs exist.
            self._possibly_sent_at = now()
            for row in self.rows:
                row.sent = True
            self._run.logger().warning(
                "Noukai batch of %d jobs of %s: record not verified; checking whether jobs exist",
                len(self.rows),
                self._flow,
            )
        if self._record is not None:
            await self.write(final=False)
        else:
            await self._create()

    def submission(self, row: BatchRow) -> Submission:
        """Return the submission of a row, with the time at which an earlier attempt may have sent it."""
        last_sent_at = None if row.never_sent else row.possibly_sent_at or self._possibly_sent_at
        return Submission(_submission_id(self._slot, row.index, row.resubmission), last_sent_at)

    async def write(self, *, final: bool) -> None:
        """Write table and record, unless that was done a few seconds ago; a final write is always made."""
        if self._record is None or (not final and time.monotonic() < self._next_write):
            return
        self._next_write = time.monotonic() + self._pause
        async with get_client() as client:
            record = ArtifactUpdate(data=self._record_data(), metadata_=self._metadata(final=final))
            await client.update_artifact(self._record, record)
            if self._table is not None:
                table = ArtifactUpdate(data=self._table_data(), description=self._description())
                await client.update_artifact(self._table, table)

    def counts(self) -> str:
        """Return how many jobs are in each state and what they cost, such as `5 completed, $0.41`."""
        counted = Counter(row.state for row in self.rows)
        order = ("completed", "failed", "cancelled", "running", "pending", "submitting", "waiting")
        states = [*(state for state in order if state in counted), *sorted(set(counted) - set(order))]
        costs = [row.cost_usd for row in self.rows if row.cost_usd is not None]
        return ", ".join(
            [
                *(f"{counted[state]} {state}" for state in states),
                *([dollars(sum(costs, Decimal(0)))] if costs else []),
            ]
        )

    async def _create(self) -> None:
        async with get_client() as client:
            table = await client.create_artifact(
                ArtifactCreate(
                    key=artifact_key("noukai-jobs", self._flow),
                    type="table",
                    description=self._description(),
                    data=self._table_data(),
                    flow_run_id=self._run.flow_run_id,
                    task_run_id=self._run.task_run_id,
                )
            )
            self._table = table.id
            record = await client.create_artifact(
                ArtifactCreate(
                    type="result",  # Prefect's web page shows no artifact of this type
                    description=f"Record of {len(self.rows)} Noukai jobs",
                    data=self._record_data(),
                    metadata_=self._metadata(final=False),
                    flow_run_id=self._run.flow_run_id,
                    task_run_id=self._run.task_run_id,
                )
            )
        self._record = record.id

    def _description(self) -> str:
        return f"{len(self.rows)} Noukai jobs of {self._flow}: {self.counts()}"

    def _table_data(self) -> str:
        ordered = sorted(self.rows, key=lambda row: not row.unsuccessful)
        shown = [row.as_table_row(self.page(row)) for row in ordered]
        used = [name for name in (shown[0] if shown else ()) if any(row[name] is not None for row in shown)]
        return json.dumps([{name: row[name] for name in used} for row in shown])

    def page(self, row: BatchRow) -> str | None:
        """Return the address of the page of a row's job, if there is one."""
        return self._credentials.page_of(self._flow, row.job_id) if row.job_id else None

    def _record_data(self) -> str:
        # Row by row, since a thousand rows as dictionaries take half a megabyte.
        rows = (json.dumps(_StoredRow.of(row).signed(self._slot, self._signer)) for row in self.rows)
        return f"[{', '.join(rows)}]"

    def _metadata(self, *, final: bool) -> Content:
        """Return what a later attempt needs to know besides the rows."""
        content = {"slot": self._slot, "flow": self._flow, "size": str(len(self.rows))}
        if self._credentials.saved_as is not None:
            content["credentials"] = self._credentials.saved_as
        if self._table is not None:
            content["table"] = str(self._table)
        if not final or any(row.may_have_job for row in self.rows):
            content["possibly_sent_at"] = now().isoformat()
        return {**content, "signature": self._signer.sign(content)}

    def _load(self, batch: StoredBatch) -> None:
        self._record, self._table, self.written_at = batch.artifact_id, batch.table, batch.updated
        self._possibly_sent_at = batch.possibly_sent_at
        verified = batch.rows_verified_by(self._signer)
        for row in self.rows:
            stored = verified.get(row.index)
            if stored is None:
                row.possibly_sent_at, row.sent = now(), True
                continue
            row.resubmission, row.job_id, row.state = stored.resubmission, stored.job_id, stored.state
            row.sent = batch.possibly_sent_at is not None
            if row.state in _UNSUCCESSFUL:
                row.replace_job()
                row.never_sent = True  # or the earlier attempt would have written the record once more


@dataclass(frozen=True, slots=True)
class _StoredRow:
    """A row of the record."""

    index: int
    resubmission: int
    job_id: str | None
    state: str
    signature: str | None = None

    @classmethod
    def of(cls, row: BatchRow) -> _StoredRow:
        return cls(row.index, row.resubmission, row.job_id, row.state)

    @classmethod
    def read(cls, stored: Any) -> _StoredRow | None:
        """Read a row; `None` when it is none."""
        match stored:
            case [int(index), int(resubmission), str() | None as job_id, str(state), str(signature)]:
                return cls(index, resubmission, job_id, state, signature)
            case _:
                return None

    def signed(self, slot: str, signer: RecordSigner) -> list[Any]:
        return [self.index, self.resubmission, self.job_id, self.state, signer.sign(self._content(slot))]

    def verified_by(self, signer: RecordSigner, slot: str) -> bool:
        return signer.verify(self._content(slot), self.signature)

    def _content(self, slot: str) -> dict[str, Any]:
        return {"slot": slot, "row": [self.index, self.resubmission, self.job_id, self.state]}


@dataclass(frozen=True)
class StoredBatch:
    """The record of a batch, as it was read.

    Attributes:
        artifact_id: The artifact that keeps it.
        scope: The run that it belongs to.
        updated: When it was last written.
        metadata: What it says about the batch, not verified.
        rows: What it says about the jobs, not verified.
    """

    artifact_id: uuid.UUID
    scope: uuid.UUID
    updated: datetime | None
    metadata: Mapping[str, str]
    rows: Sequence[_StoredRow]

    @classmethod
    def read(cls, artifact: Artifact, scope: uuid.UUID) -> StoredBatch | None:
        """Read an artifact; `None` when it is no record of a batch. Rows that cannot be read are left out."""
        metadata = artifact.metadata_ or {}
        if not {"slot", "flow", "signature"} <= set(metadata):
            return None
        try:
            data: Any = json.loads(artifact.data) if isinstance(artifact.data, str) else artifact.data
        except ValueError:
            data = None
        rows: list[Any] = [*data] if isinstance(data, list) else []  # pyright: ignore[reportUnknownVariableType]
        read = [row for stored in rows if (row := _StoredRow.read(stored))]
        return cls(artifact.id, scope, artifact.updated, metadata, read)

    @property
    def slot(self) -> str:
        """The slot of the batch."""
        return self.metadata["slot"]

    @property
    def flow(self) -> str:
        """The Noukai flow."""
        return self.metadata["flow"]

    @property
    def size(self) -> str:
        """The number of jobs."""
        return self.metadata.get("size", "?")

    @property
    def credentials(self) -> str | None:
        """The name of the stored block whose key submitted the jobs, if it is a stored one."""
        return self.metadata.get("credentials")

    @property
    def table(self) -> uuid.UUID | None:
        """The table for people."""
        table = self.metadata.get("table")
        return uuid.UUID(table) if table else None

    @property
    def possibly_sent_at(self) -> datetime | None:
        """When a submission may last have been sent whose job the record does not have."""
        sent = self.metadata.get("possibly_sent_at")
        return datetime.fromisoformat(sent) if sent else None

    def verified_by(self, signer: RecordSigner) -> bool:
        """Return whether this run wrote the metadata with the signer's API key."""
        content = {name: value for name, value in self.metadata.items() if name != "signature"}
        return signer.verify(content, self.metadata["signature"])

    def rows_verified_by(self, signer: RecordSigner) -> dict[int, _StoredRow]:
        """Return the rows that this run wrote with the signer's API key, by index."""
        return {row.index: row for row in self.rows if row.verified_by(signer, self.slot)}

    def complete(self, signer: RecordSigner) -> bool:
        """Return whether metadata and all rows are verified."""
        return self.verified_by(signer) and len(self.rows_verified_by(signer)) == int(self.size)

    def unfinished(self, signer: RecordSigner) -> Iterator[JobRecord]:
        """Return the verified jobs, and submissions, that are not recorded as ended.

        The record may lag some seconds behind the jobs.
        """
        for row in self.rows_verified_by(signer).values():
            if row.state not in _ENDED and (row.job_id or self.possibly_sent_at):
                yield JobRecord(
                    submission_id=_submission_id(self.slot, row.index, row.resubmission),
                    flow=self.flow,
                    slot=self.slot,
                    resubmission=row.resubmission,
                    last_sent_at=self.updated,  # no job of the record was submitted later
                    job_id=row.job_id,
                    credentials=self.credentials,
                )

    async def record_cancelled(self, signer: RecordSigner, cancelled: Mapping[str, str]) -> None:
        """Record which jobs were cancelled by a hook, so that a rerun submits new ones.

        Args:
            signer: Who signs the rows.
            cancelled: The ids of the jobs, by the id of the submission.
        """
        rows, changed = list[list[Any]](), dict[int, str]()
        for row in self.rows:
            job_id = cancelled.get(_submission_id(self.slot, row.index, row.resubmission))
            if job_id is not None and row.verified_by(signer, self.slot):
                changed[row.index] = job_id
                row = _StoredRow(row.index, row.resubmission, job_id, JobState.CANCELLED.value)
                rows.append(row.signed(self.slot, signer))
            else:
                rows.append([row.index, row.resubmission, row.job_id, row.state, row.signature])
        if not changed:
            return
        async with get_client() as client:
            await client.update_artifact(self.artifact_id, ArtifactUpdate(data=json.dumps(rows)))
            if self.table is not None:
                wanted = ArtifactFilter(id=ArtifactFilterId(any_=[self.table]))
                (table,) = await client.read_artifacts(artifact_filter=wanted)
                await client.update_artifact(table.id, ArtifactUpdate(data=_with_cancelled(table, changed)))


def _with_cancelled(table: Artifact, changed: Mapping[int, str]) -> Any:
    """Return the data of a table in which some jobs are cancelled."""
    data: Any = json.loads(table.data) if isinstance(table.data, str) else table.data
    for row in data:
        if row["#"] in changed:
            row["state"] = JobState.CANCELLED.value
    return json.dumps(data)


async def read_batches(scopes: Mapping[uuid.UUID, uuid.UUID]) -> list[StoredBatch]:
    """Return the records of flow runs' batches; for the argument see `with_subflows`."""
    return [
        batch
        for artifact, scope in await scoped_artifacts(scopes, BATCH_RECORDS)
        if (batch := StoredBatch.read(artifact, scope))
    ]


def _submission_id(slot: str, index: int, resubmission: int) -> str:
    return str(uuid.uuid5(uuid.UUID(slot), f"{index}:{resubmission}"))
