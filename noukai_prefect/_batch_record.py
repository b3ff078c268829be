"""The record of a batch on the Prefect server, from which a rerun continues.

It is a log in artifacts that Prefect's web page does not show. An artifact per job would keep Prefect's
server busy for longer than the jobs run; so what comes at the same time is written together, and an artifact
that is large enough is followed by another.

Each row of the log is signed separately, so a row that was changed affects no other row.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, cast

from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import Artifact

from noukai_core import AsyncFlow, InvalidInputError, LedgerEntry
from noukai_core.batch import SUBMITTED, SUBMITTING, is_session_of, submission_id_of
from noukai_core.batch_record import Row, entries_of, is_row
from noukai_prefect._artifacts import BATCH_RECORDS, own_artifacts, scoped_artifacts
from noukai_prefect._job_store import now
from noukai_prefect._prefect_client import prefect_client
from noukai_prefect._run_context import RunContext
from noukai_prefect._signing import RecordSigner
from noukai_prefect.credentials import NoukaiCredentials, stored_reference

_CHUNK_CHARACTERS = 64_000
_CHUNK = "chunk"


class BatchRecordLog:
    """The log of one batch.

    Args:
        run: Where the batch runs. Without a flow run or a task run, nothing is kept.
        slot: Which of the flow run's batches it is; a UUID that is the same in each attempt.
        flow: The Noukai flow.
        size: The number of inputs, if it is known.
        credentials: The credentials that submit the jobs.

    Attributes:
        table: The artifact of the batch's table, which a rerun continues.
        damaged: Whether a part of what earlier attempts wrote cannot be read, so that inputs of which nothing
            is known may have a job. It is known once the rows have been read.
    """

    def __init__(
        self, run: RunContext, slot: str, flow: str, size: int | None, credentials: NoukaiCredentials
    ) -> None:
        self.table: uuid.UUID | None = None
        self.damaged = False
        self._run = run
        self._slot = slot
        self._size = "many" if size is None else str(size)
        self._credentials = credentials
        self._signer = RecordSigner(credentials.api_key, run.scope or uuid.UUID(slot))
        self._flow = flow
        self._chunk = 0
        self._artifact: uuid.UUID | None = None
        self._rows: list[str] = []
        self._characters = 0

    async def rows(self, flow: AsyncFlow) -> list[Row]:
        """Read what earlier attempts wrote.

        Args:
            flow: The Noukai flow, which is asked for the jobs in sessions whose record is not verified.

        Raises:
            InvalidInputError: Somebody else has changed the record, so it is not safe to submit anything.
        """
        scope = self._run.scope
        if scope is None:
            return []
        stored = [
            batch
            for batch in stored_batches(
                [(artifact, scope) for artifact in await own_artifacts(self._run, BATCH_RECORDS)]
            )
            if batch.slot == self._slot
        ]
        # Each attempt of a subflow is a flow run of its own, and continues the numbers of those before.
        chunks = sorted((chunk for batch in stored for chunk in batch.chunks), key=lambda chunk: chunk.number)
        self._chunk = max((chunk.number for chunk in chunks), default=0)
        self.table = next((table for batch in stored if (table := batch.table(self._signer))), None)
        rows, others = list[Row](), list[Row]()
        for row, signature in (signed for chunk in chunks for signed in chunk.rows):
            verified = self._signer.verify(_content(self._slot, row), signature)
            (rows if verified else others).append(row)
        self.damaged = any(chunk.damaged for chunk in chunks) or not all(map(is_row, others))
        known = entries_of(rows)
        unsure = self._unsure_entries([row for chunk in chunks for row, _ in chunk.rows], known)
        if unsure:
            self._run.logger().warning(
                "Noukai batch of %s jobs of %s: record not verified; checking whether jobs exist",
                self._size,
                self._flow,
            )
            unsure = await _with_jobs(unsure, {entry.job_id for entry in known.values()}, flow)
        return rows + [{"entry": entry.to_list()} for entry in unsure]

    def _unsure_entries(self, rows: list[Row], known: Mapping[int, LedgerEntry]) -> list[LedgerEntry]:
        """Return what rows say that no verified row says: jobs may have been submitted.

        Raises:
            InvalidInputError: A session is not one of this batch, so nobody knows where its jobs are.
        """
        batch_id, unsure = uuid.UUID(self._slot), list[LedgerEntry]()
        recorded = entries_of(rows).values()
        for entry in chain.from_iterable((*one.concurrent, one) for one in recorded):
            verified = known.get(entry.index)
            if verified is not None and verified.resubmission >= entry.resubmission:
                continue
            if not is_session_of(entry.session_id, batch_id):
                raise _changed(self._flow)
            unsure.append(
                LedgerEntry(
                    index=entry.index,
                    submission_id=submission_id_of(batch_id, entry.index, entry.resubmission),
                    session_id=entry.session_id,
                    job_id=entry.job_id,
                    state=SUBMITTING,
                    resubmission=entry.resubmission,
                    sent_at=now(),
                )
            )
        return unsure

    async def append(self, rows: list[Row]) -> None:
        """Append rows. They are stored when this returns."""
        if self._run.scope is None:
            return
        for row in rows:
            signed = json.dumps([row, self._signer.sign(_content(self._slot, row))])
            if self._characters + len(signed) > _CHUNK_CHARACTERS:
                await self._write()
                self._artifact, self._rows, self._characters = None, [], 0
            self._rows.append(signed)
            self._characters += len(signed)
        await self._write()

    async def _write(self) -> None:
        if not self._rows:
            return
        async with prefect_client() as client:
            if self._artifact is not None:
                await client.update_artifact(self._artifact, ArtifactUpdate(data=self._data()))
                return
            self._chunk += 1  # one that seems not to have been written may exist
            artifact = await client.create_artifact(
                ArtifactCreate(
                    type="result",  # Prefect's web page shows no artifact of this type
                    description=f"Record of Noukai jobs of {self._flow}",
                    data=self._data(),
                    metadata_=self._metadata(),
                    flow_run_id=self._run.flow_run_id,
                    task_run_id=self._run.recorded_on,
                )
            )
            self._artifact = artifact.id

    def _data(self) -> str:
        return f"[{', '.join(self._rows)}]"

    def _metadata(self) -> dict[str, str]:
        content = {"slot": self._slot, "flow": self._flow, "chunk": str(self._chunk), "size": self._size}
        if (credentials := stored_reference(self._credentials)) is not None:
            content["credentials"] = credentials
        if self.table is not None:
            content["table"] = str(self.table)
        return {**content, "signature": self._signer.sign(content)}


async def _with_jobs(
    unsure: Sequence[LedgerEntry], known: set[str | None], flow: AsyncFlow
) -> list[LedgerEntry]:
    """Return entries that are not verified, with the jobs that the server lists in the batch's own sessions.

    Raises:
        InvalidInputError: Of several inputs in one session, it is not known which job is whose.
    """
    found: list[LedgerEntry] = []
    by_session: defaultdict[str, list[LedgerEntry]] = defaultdict(list)
    for entry in unsure:
        by_session[entry.session_id].append(entry)
    for session_id, entries in by_session.items():
        listed = await flow.jobs_in(session_id) - known
        claimed = Counter(entry.job_id for entry in entries)
        proven = [entry for entry in entries if entry.job_id in listed and claimed[entry.job_id] == 1]
        found += [replace(entry, state=SUBMITTED) for entry in proven]
        others = [replace(entry, job_id=None) for entry in entries if entry not in proven]
        if len(others) > 1:
            raise _changed(flow.path)
        found += others
    return found


def _changed(flow: str) -> InvalidInputError:
    return InvalidInputError(
        f"the record of a Noukai batch of {flow} was changed, so it is not known which jobs exist. Nothing "
        "was submitted. Cancel its jobs in the Noukai console, and start a new flow run"
    )


def _content(slot: str, row: Any) -> dict[str, Any]:
    return {"slot": slot, "row": row}


@dataclass(frozen=True)
class _Chunk:
    """One artifact of the log, not verified.

    Attributes:
        number: Its position in the log.
        metadata: Which log it is of.
        rows: The rows that can be read, with their signatures.
        damaged: Whether there are others.
    """

    number: int
    metadata: Mapping[str, str]
    rows: Sequence[tuple[Row, str | None]]
    damaged: bool

    @classmethod
    def read(cls, artifact: Artifact) -> _Chunk | None:
        """Read an artifact; `None` when it is no record of a batch."""
        metadata = artifact.metadata_ or {}
        if not {"slot", "flow", "chunk", "signature"} <= set(metadata):
            return None
        try:
            uuid.UUID(metadata["slot"])
            number = int(metadata["chunk"])
        except ValueError:
            return None
        try:
            data: Any = json.loads(artifact.data) if isinstance(artifact.data, str) else artifact.data
        except (ValueError, RecursionError):
            data = None
        rows: list[tuple[Row, str | None]] = []
        signed_rows: list[Any] = [*data] if isinstance(data, list) else [None]  # pyright: ignore
        for signed in signed_rows:
            match signed:
                case [row, signature] if isinstance(row, dict):
                    rows.append((cast("Row", row), signature))
                case _:
                    pass
        return cls(number, metadata, rows, damaged=len(rows) < len(signed_rows))

    def verified_rows(self, slot: str, signer: RecordSigner) -> list[Row]:
        return [row for row, signature in self.rows if signer.verify(_content(slot, row), signature)]

    def verified_by(self, signer: RecordSigner) -> bool:
        content = {name: value for name, value in self.metadata.items() if name != "signature"}
        return signer.verify(content, self.metadata["signature"])


@dataclass(frozen=True)
class StoredBatch:
    """The record of a batch, as it was read.

    Attributes:
        scope: The run that it belongs to.
        flow_run_id: The flow run that wrote it.
        slot: The slot of the batch.
        flow: The Noukai flow.
        size: The number of jobs.
        credentials: Which stored block's key submitted the jobs, if it is a stored one.
        chunks: The artifacts of the log, in their order.
    """

    scope: uuid.UUID
    flow_run_id: uuid.UUID | None
    slot: str
    flow: str
    size: str
    credentials: str | None
    chunks: Sequence[_Chunk]

    def complete(self, signer: RecordSigner) -> bool:
        """Return whether all of it was written by this run, with the signer's API key."""
        rows = sum(len(chunk.rows) for chunk in self.chunks)
        return len(self.verified_rows(signer)) == rows and all(
            chunk.verified_by(signer) and not chunk.damaged for chunk in self.chunks
        )

    def verified_rows(self, signer: RecordSigner) -> list[Row]:
        """Return the rows that this run wrote with the signer's API key, oldest first."""
        return [row for chunk in self.chunks for row in chunk.verified_rows(self.slot, signer)]

    def entries(self, signer: RecordSigner) -> dict[int, LedgerEntry]:
        """Return the verified entry of each input."""
        return entries_of(self.verified_rows(signer))

    def table(self, signer: RecordSigner) -> uuid.UUID | None:
        """Return the artifact of the table for people."""
        tables = [chunk.metadata.get("table") for chunk in self.chunks if chunk.verified_by(signer)]
        return next((uuid.UUID(table) for table in tables if table), None)


class StoredLedger:
    """A ledger that begins with a stored batch, and collects what is written.

    Args:
        batch: The batch.
        signer: Who verifies it.
    """

    def __init__(self, batch: StoredBatch, signer: RecordSigner) -> None:
        self._batch = batch
        self._signer = signer
        self._written: list[LedgerEntry] = []

    def read(self) -> Mapping[int, LedgerEntry]:
        """Return the verified entries."""
        return self._batch.entries(self._signer)

    def write(self, entry: LedgerEntry) -> None:
        """Keep an entry until `store`."""
        self._written.append(entry)

    def ended(self) -> dict[int, str]:
        """Return the states of the jobs that have ended, by the index of their input."""
        return {entry.index: entry.state for entry in self._written if not entry.unfinished}

    async def store(self) -> None:
        """Append what was written to the batch's log."""
        if not self._written:
            return
        batch = self._batch
        content = {"slot": batch.slot, "flow": batch.flow, "size": batch.size}
        content["chunk"] = str(batch.chunks[-1].number + 1)
        if batch.credentials is not None:
            content["credentials"] = batch.credentials
        rows: list[Row] = [{"entry": entry.to_list()} for entry in self._written]
        async with prefect_client() as client:
            await client.create_artifact(
                ArtifactCreate(
                    type="result",
                    description=f"Record of Noukai jobs of {batch.flow}",
                    data=json.dumps([[row, self._signer.sign(_content(batch.slot, row))] for row in rows]),
                    metadata_={**content, "signature": self._signer.sign(content)},
                    flow_run_id=batch.flow_run_id,
                )
            )


def stored_batches(artifacts: Sequence[tuple[Artifact, uuid.UUID]]) -> list[StoredBatch]:
    """Return the batches whose records are among artifacts, each of which comes with its scope."""
    found: defaultdict[_Batch, list[_Chunk]] = defaultdict(list)
    for artifact, scope in artifacts:
        if (chunk := _Chunk.read(artifact)) is not None:
            slot, flow, size, credentials = map(chunk.metadata.get, ("slot", "flow", "size", "credentials"))
            batch = _Batch(scope, artifact.flow_run_id, str(slot), str(flow), size or "many", credentials)
            found[batch].append(chunk)
    return [
        StoredBatch(**batch._asdict(), chunks=sorted(chunks, key=lambda chunk: chunk.number))
        for batch, chunks in found.items()
    ]


class _Batch(NamedTuple):
    """What all artifacts of a batch have in common."""

    scope: uuid.UUID
    flow_run_id: uuid.UUID | None
    slot: str
    flow: str
    size: str
    credentials: str | None


async def read_batches(scopes: Mapping[uuid.UUID, uuid.UUID]) -> list[StoredBatch]:
    """Return the records of flow runs' batches; for the argument see `with_subflows`."""
    return stored_batches(await scoped_artifacts(scopes, BATCH_RECORDS))
