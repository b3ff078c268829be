"""What a flow run knows about the jobs that it submitted, kept on the Prefect server.

The id of each submission follows from the flow run and the inputs, so a rerun computes the same one. It is
stored as an artifact before the request, and the job's id right after. A rerun in any process or container
reads these records, and attaches to the existing job. A record is used only if its signature proves that this
run wrote it with the same API key.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import uuid
import weakref
from collections import Counter, UserString, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias, cast

from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import Artifact
from pydantic import SecretStr

from noukai_core import AsyncJob, Submission, SubmissionRecord
from noukai_prefect._artifacts import JOB_RECORDS, artifact_key, own_artifacts, scoped_artifacts
from noukai_prefect._prefect_client import prefect_client
from noukai_prefect._run_context import RunContext
from noukai_prefect._signing import RecordSigner
from noukai_prefect._text import markdown

CLAIM_SECONDS = 1.0
"""How long a claim has to stand before its task relies on it; another task may be writing its own."""

_READ_PAUSE = 0.05
_NAMESPACE = uuid.UUID("5d1f62a4-32b1-4d0a-8c0e-6f3f9f0f1b7e")


@dataclass(frozen=True, kw_only=True)
class JobRecord(SubmissionRecord):
    """One submission of a flow run.

    Attributes:
        slot: Which of the run's submissions it is. A retry after a failed job has the same slot.
        resubmission: How many jobs preceded it in its slot.
        ended: Whether this flow run saw it fail, or cancelled it. The next attempt then submits a new job.
        credentials: Which stored block's key submitted the job, if it is a stored one.
        claim: The attempt of the run and the detached task that use the slot. It is not signed, as it cannot
            lead to another run's job.
        artifact_id: The artifact that keeps the record.
        signature: The signature with which the record was read.
        unverified: The numbers of its slot's submissions whose records are not verified, the latest first.
            They may have jobs all the same.
    """

    slot: str
    resubmission: int = 0
    ended: bool = False
    credentials: str | None = None
    claim: str | None = None
    artifact_id: uuid.UUID | None = None
    signature: str | None = None
    unverified: tuple[int, ...] = ()

    def next(self) -> JobRecord:
        """Return the record of the job that replaces this one."""
        return self.numbered(self.resubmission + 1)

    def numbered(self, resubmission: int) -> JobRecord:
        """Return the record of another submission in the slot. It is looked up if some are not verified."""
        new = _new_record(self.flow, self.slot, resubmission)
        return replace(
            new,
            last_sent_at=now() if self.unverified else None,
            credentials=self.credentials,
            claim=self.claim,
            unverified=self.unverified,
        )

    def metadata(self, signer: RecordSigner) -> dict[str, str]:
        """Return it as the signed metadata of an artifact."""
        return self._signed(signer.sign(self._content()))

    def claimed_metadata(self, claim: str) -> dict[str, str]:
        """Return the metadata with which it was read, but for its claim."""
        return replace(self, claim=claim)._signed(self.signature)

    def verified_by(self, signer: RecordSigner) -> bool:
        """Return whether this run wrote the record with the signer's API key."""
        expected = _new_record(self.flow, self.slot, self.resubmission).submission_id
        return self.submission_id == expected and signer.verify(self._content(), self.signature)

    def _signed(self, signature: str | None) -> dict[str, str]:
        unsigned = {"claim": self.claim, "signature": signature}
        return self._content() | {name: value for name, value in unsigned.items() if value is not None}

    def _content(self) -> dict[str, str]:
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
                claim=metadata.get("claim"),
                artifact_id=artifact_id,
                signature=metadata.get("signature"),
            )
        except (KeyError, TypeError, ValueError):
            return None


# The task run that submits, if there is one, and a digest of what it submits.
_Caller: TypeAlias = tuple[uuid.UUID | None, str]


class JobStore:
    """The records of one attempt of a flow run, or of a task run that has no flow."""

    def __init__(self, scope: uuid.UUID) -> None:
        self._scope = scope
        self._stored: defaultdict[str, list[JobRecord]] = defaultdict(list)
        self._latest: dict[str, JobRecord] = {}
        self._signers: dict[str, RecordSigner] = {}
        self._slots: defaultdict[_Caller, list[str]] = defaultdict(list)
        self._turns: Counter[tuple[_Caller, int]] = Counter()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._being_read = False
        self._read = False

    async def record(self, run: RunContext, flow: str, slot: str, api_key: SecretStr) -> JobRecord:
        """Return the record of a submission: the latest in its slot, or a new one.

        Args:
            run: Where the code runs.
            flow: The Noukai flow.
            slot: What `slot_of_job` returned for the submission.
            api_key: The key that submits it, and has to have signed the record.
        """
        await self._read_once(run)
        claim = None
        if run.detached_attempt is not None:
            claim = f"{run.detached_attempt} {run.outermost_task}"
            slot = await self._claimed_slot(run, slot, claim)
        signer = RecordSigner(api_key, self._scope)
        with self._lock:
            self._signers[slot] = signer
            stored = self._stored[slot]
            unverified = {record.resubmission for record in stored if not record.verified_by(signer)}
            numbers = tuple(sorted({0} | unverified, reverse=True)) if unverified else ()
            if slot not in self._latest:
                for record in stored:
                    if record.verified_by(signer):
                        self._latest[slot] = replace(record, unverified=numbers)
        if slot in self._latest:
            return replace(self._latest[slot], claim=claim)
        new = replace(_new_record(flow, slot, 0), claim=claim, unverified=numbers)
        if not numbers:
            return new
        # The records were changed, or another key signed them. The server knows whether a job exists.
        new = new.numbered(numbers[0])
        run.logger().warning(
            "Noukai submission %s to %s: record not verified; checking whether a job exists",
            new.submission_id,
            flow,
        )
        return new

    async def _claimed_slot(self, run: RunContext, own: str, claim: str) -> str:
        """Return a slot that an earlier attempt has left to a detached task, or the task's own.

        Detached tasks share no memory in which to count equal submissions, so each has its own slot. In a
        rerun, each takes a slot that no other task of this attempt has taken: two equal submissions attach to
        two jobs.
        """
        group, attempt = own.partition("/")[0], claim.partition(" ")[0]
        records = [record for slot in list(self._stored) for record in self._stored[slot]]
        while own not in self._latest and not self._stored.get(own):
            in_slot = {one.slot: one for one in records if one.slot.startswith(f"{group}/")}
            for slot in in_slot:
                if in_slot[slot].claim == claim and slot not in self._latest:
                    self._take(own, slot, records)
                    return slot
            left = [one for one in in_slot.values() if (one.claim or "").partition(" ")[0] != attempt]
            if not left:
                break
            # Tasks that begin together begin with different slots.
            chosen = left[run.outermost_task.int % len(left)] if run.outermost_task else left[0]
            assert chosen.artifact_id is not None, "it was read"
            async with prefect_client() as client:
                update = ArtifactUpdate(metadata_=chosen.claimed_metadata(claim))
                await client.update_artifact(chosen.artifact_id, update)
            await asyncio.sleep(CLAIM_SECONDS)
            records = _records_in(await own_artifacts(run, JOB_RECORDS))
        return own

    def _take(self, own: str, slot: str, records: Sequence[JobRecord]) -> None:
        """Use a slot instead of the task's own, also in a retry of the task."""
        with self._lock:
            self._stored[slot] = [record for record in records if record.slot == slot]
            for slots in self._slots.values():
                slots[:] = [slot if one == own else one for one in slots]

    async def store(self, run: RunContext, record: JobRecord, text: str | None) -> JobRecord:
        """Store a record, before the request and again with the job's id.

        Args:
            run: Where the code runs.
            record: The record.
            text: The artifact's text; `None` to leave it as it is.
        """
        metadata = record.metadata(self._signers[record.slot])
        if record.artifact_id is not None:
            with self._lock:
                self._latest[record.slot] = record
        async with prefect_client() as client:
            if record.artifact_id is None:
                artifact = await client.create_artifact(
                    ArtifactCreate(
                        key=artifact_key("noukai-job", record.flow),
                        type="markdown",
                        description=f"A Noukai job of {record.flow}",
                        data=text,
                        metadata_=metadata,
                        flow_run_id=run.flow_run_id,
                        task_run_id=run.recorded_on,
                    )
                )
                record = replace(record, artifact_id=artifact.id)
            else:
                update = (
                    ArtifactUpdate(data=text, metadata_=metadata)
                    if text
                    else ArtifactUpdate(metadata_=metadata)
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
        text = None if found.job_id else f"Noukai job {markdown(job.id)} of {job.flow}"
        await self.store(run, replace(found, job_id=job.id, ended=True), text)

    def artifact_of(self, job_id: str) -> uuid.UUID | None:
        """Return the artifact that keeps a job's record, if this store has it."""
        with self._lock:
            records = [one for one in self._latest.values() if one.job_id == job_id]
        return records[0].artifact_id if records else None

    def slot(self, run: RunContext, flow: str, inputs: Mapping[str, Any]) -> str:
        """Return the slot of a submission. Equal submissions of one attempt are distinguished by a number.

        The retry of a task gets the slots of its earlier tries. So do the tasks that the retry calls, which
        are new task runs.
        """
        digest = _digest([flow, inputs])

        def counted(turn: int) -> str:
            number = self._counts[digest]
            self._counts[digest] += 1
            return str(uuid.uuid5(_NAMESPACE, f"{self._scope}:{digest}:{number}"))

        return self._slot(run, digest, counted)

    def slot_of_job(self, run: RunContext, flow: str, inputs: Mapping[str, Any]) -> str:
        """Return the slot of a single job; in a detached task, its group, the task run, and a number."""
        if run.detached_attempt is None:
            return self.slot(run, flow, inputs)
        digest = _digest([flow, inputs])
        group = uuid.uuid5(_NAMESPACE, f"{self._scope}:{digest}")
        return self._slot(run, digest, lambda turn: f"{group}/{run.outermost_task}:{turn}")

    def _slot(self, run: RunContext, digest: str, new: Callable[[int], str]) -> str:
        with self._lock:
            return self._slot_in(((run.task_run_id, run.task_attempt), *run.enclosing), digest, new)

    def _slot_in(
        self, tasks: Sequence[tuple[uuid.UUID | None, int]], digest: str, new: Callable[[int], str]
    ) -> str:
        (task, attempt), *outer = tasks
        slots, turn = self._slots[task, digest], self._turns[(task, digest), attempt]
        self._turns[(task, digest), attempt] += 1
        if turn == len(slots):
            slots.append(self._slot_in(outer, digest, new) if outer else new(turn))
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
                for record in _records_in(await own_artifacts(run, JOB_RECORDS)):
                    self._stored[record.slot].append(record)
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


async def read_records(scopes: Mapping[uuid.UUID, uuid.UUID]) -> list[tuple[JobRecord, uuid.UUID]]:
    """Return the records of flow runs, each with its scope; for the argument see `with_subflows`."""
    return [
        (record, scope)
        for artifact, scope in await scoped_artifacts(scopes, JOB_RECORDS)
        if (record := JobRecord.read(artifact.metadata_ or {}, artifact.id)) is not None
    ]


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


async def mark_ended(record: JobRecord, signer: RecordSigner, text: str) -> None:
    """Record that a job failed or was cancelled, so that a rerun submits a new one.

    Args:
        record: The record, as it was read.
        signer: Who signs it.
        text: The artifact's text.
    """
    assert record.artifact_id is not None, "it was read"
    async with prefect_client() as client:
        update = ArtifactUpdate(data=text, metadata_=replace(record, ended=True).metadata(signer))
        await client.update_artifact(record.artifact_id, update)


def now() -> datetime:
    """Return the current time, in the form of the records."""
    return datetime.now(UTC)


def _digest(submitted: Any) -> str:
    """Return a digest of what is submitted, which is the same in each process."""
    try:
        text = json.dumps(submitted, sort_keys=True, default=_as_sent)
    except Exception:  # an object of a user's own class may raise anything
        text = repr(submitted)  # the job client rejects such inputs with an explanation
    return hashlib.sha256(text.encode()).hexdigest()


def _as_sent(value: object) -> Any:
    """Return what the job client sends for a value that is no JSON: its `repr` may name an address."""
    sent: Any = cast("Any", value)
    if isinstance(value, Mapping):
        return dict(sent)
    if isinstance(value, Set):
        return sorted(sent, key=repr)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview | UserString):
        return list(sent)
    return repr(sent)


def _new_record(flow: str, slot: str, resubmission: int) -> JobRecord:
    submission_id = str(uuid.uuid5(_NAMESPACE, f"{slot}:{resubmission}"))
    return JobRecord(submission_id=submission_id, flow=flow, slot=slot, resubmission=resubmission)
