"""What a flow run knows about a batch of jobs: one table on the Prefect server, for people and for a rerun.

One artifact per job would keep Prefect's server busy for longer than the jobs run, so a batch has one table.
It is written before the first request, and then every few seconds. What a crash prevents it from recording
follows from the ids of the submissions, which are derived from the batch's slot in the run.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import Artifact

from noukai_core import JobState, Submission
from noukai_prefect._artifacts import artifacts_of, own_artifacts
from noukai_prefect._job_store import JobRecord, now
from noukai_prefect._run_context import RunContext

BATCH_KEY = "noukai-jobs"

WRITE_SECONDS = 5.0
"""The shortest time between two writes of a table of up to a thousand jobs."""

_UNSUCCESSFUL = ("failed", "cancelled")
_ENDED = ("completed", *_UNSUCCESSFUL)


@dataclass(slots=True)
class BatchRow:
    """One job of a batch.

    Attributes:
        index: The position of its input.
        resubmission: How many jobs preceded it for this input.
        job_id: The job, once it is known.
        state: The job's state; before and instead of a job, what happens to the submission.
        seconds: From the submission, or from attaching to an earlier job, to the end.
        tokens: The tokens of the job's trace.
        cost_usd: The cost of the job's trace in US dollars.
        error: Why the job did not complete.
        sent: Whether its submission was sent and not rejected.
        never_sent: Whether no earlier attempt can have sent its submission.
    """

    index: int
    resubmission: int = 0
    job_id: str | None = None
    state: str = "waiting"
    seconds: float | None = None
    tokens: int | None = None
    cost_usd: str | None = None
    error: str | None = None
    sent: bool = False
    never_sent: bool = False

    @property
    def may_have_job(self) -> bool:
        """Whether there may be a job whose id is not known."""
        return self.sent and self.job_id is None

    @property
    def unfinished(self) -> bool:
        """Whether there is a job that was not seen to end, even if nothing waits for it any more."""
        return self.job_id is not None and self.state not in _ENDED

    def replace_job(self) -> None:
        """Prepare for a new job."""
        self.resubmission, self.job_id, self.sent, self.state = self.resubmission + 1, None, False, "waiting"
        self.error = None

    def as_table_row(self) -> dict[str, Any]:
        """Return it as a row of the table."""
        return {
            "index": self.index,
            "job": self.job_id,
            "state": self.state,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "cost in $": self.cost_usd,
            "error": self.error,
            "resubmission": self.resubmission,
        }


class BatchTable:
    """The table of one batch.

    Args:
        run: Where the batch runs.
        slot: Which of the flow run's batches it is; a UUID that is the same in each attempt.
        flow: The Noukai flow.
        size: The number of inputs.
        credentials: The name of the stored block whose key is used, if it is a stored one.

    Attributes:
        rows: The jobs, in the order of the inputs.
        written_at: When an earlier attempt last wrote the table. No job in it was submitted later.
    """

    def __init__(self, run: RunContext, slot: str, flow: str, size: int, credentials: str | None) -> None:
        self.rows = [BatchRow(index) for index in range(size)]
        self.written_at: datetime | None = None
        self._run = run
        self._slot = slot
        self._flow = flow
        self._credentials = credentials
        self._artifact: uuid.UUID | None = None
        self._possibly_sent_at: datetime | None = None
        self._pause = max(WRITE_SECONDS, WRITE_SECONDS * size / 1000)
        self._next_write = 0.0

    async def open(self) -> None:
        """Read what an earlier attempt wrote, and record that jobs may be submitted from now on."""
        if self._run.scope is None:
            return
        for artifact in await own_artifacts(self._run, BATCH_KEY):
            if (artifact.metadata_ or {}).get("slot") == self._slot:
                self._load(artifact)
        if self._artifact is not None:
            await self.write(final=False)
            return
        async with get_client() as client:
            artifact = await client.create_artifact(
                ArtifactCreate(
                    key=BATCH_KEY,
                    type="table",
                    description=f"{len(self.rows)} Noukai jobs of {self._flow}",
                    data=self._table(),
                    metadata_=self._metadata(final=False),
                    flow_run_id=self._run.flow_run_id,
                    task_run_id=self._run.task_run_id,
                )
            )
        self._artifact = artifact.id

    def submission(self, row: BatchRow) -> Submission:
        """Return the submission of a row, with the time at which an earlier attempt may have sent it."""
        last_sent_at = None if row.never_sent else self._possibly_sent_at
        return Submission(_submission_id(self._slot, row.index, row.resubmission), last_sent_at)

    async def write(self, *, final: bool) -> None:
        """Write the table, unless the last write was a few seconds ago; a final one is always made."""
        if self._artifact is None or (not final and time.monotonic() < self._next_write):
            return
        self._next_write = time.monotonic() + self._pause
        async with get_client() as client:
            update = ArtifactUpdate(data=self._table(), metadata_=self._metadata(final=final))
            await client.update_artifact(self._artifact, update)

    def _table(self) -> str:
        # Row by row, since a thousand rows as dictionaries take half a megabyte.
        return f"[{', '.join(json.dumps(row.as_table_row()) for row in self.rows)}]"

    def _metadata(self, *, final: bool) -> dict[str, str]:
        """Return what a later attempt needs to know besides the rows."""
        stored = {"slot": self._slot, "flow": self._flow}
        if self._credentials is not None:
            stored["credentials"] = self._credentials
        if not final or any(row.may_have_job for row in self.rows):
            stored["possibly_sent_at"] = now().isoformat()
        return stored

    def _load(self, artifact: Artifact) -> None:
        self._artifact, self.written_at = artifact.id, artifact.updated
        sent = (artifact.metadata_ or {}).get("possibly_sent_at")
        self._possibly_sent_at = datetime.fromisoformat(sent) if sent else None
        for stored in rows_of(artifact):
            row = self.rows[int(stored["index"])]
            row.resubmission, row.job_id = int(stored["resubmission"]), stored["job"]
            row.state = stored["state"]
            if row.state in _UNSUCCESSFUL:
                row.replace_job()
                row.never_sent = True  # or the earlier attempt would have written the table once more


async def read_unfinished(scopes: Sequence[uuid.UUID]) -> list[JobRecord]:
    """Return the jobs, and submissions, of batches that the tables do not show as ended.

    A table may lag some seconds behind the jobs. See `artifacts_of` for the scopes.
    """
    return [
        _record(artifact, row)
        for artifact in await artifacts_of(scopes, BATCH_KEY)
        for row in rows_of(artifact)
        if row["state"] not in _ENDED and (row["job"] or "possibly_sent_at" in (artifact.metadata_ or {}))
    ]


async def record_cancelled(scopes: Sequence[uuid.UUID], cancelled: Mapping[str, str]) -> None:
    """Record in the tables which jobs were cancelled by a hook, so that a rerun submits new ones.

    Args:
        scopes: Where the batches ran; see `artifacts_of`.
        cancelled: The ids of the jobs, by the id of the submission.
    """
    for artifact in await artifacts_of(scopes, BATCH_KEY) if cancelled else ():
        rows = [dict(row) for row in rows_of(artifact)]
        found = [row for row in rows if _record(artifact, row).submission_id in cancelled]
        for row in found:
            row["job"] = cancelled[_record(artifact, row).submission_id]
            row["state"] = JobState.CANCELLED.value
        if found:
            async with get_client() as client:
                await client.update_artifact(artifact.id, ArtifactUpdate(data=json.dumps(rows)))


def _record(artifact: Artifact, row: Mapping[str, Any]) -> JobRecord:
    metadata = artifact.metadata_ or {}
    slot, resubmission = metadata["slot"], int(row["resubmission"])
    return JobRecord(
        submission_id=_submission_id(slot, int(row["index"]), resubmission),
        flow=metadata["flow"],
        slot=slot,
        resubmission=resubmission,
        last_sent_at=artifact.updated,  # no job of the table was submitted later
        job_id=row["job"],
        credentials=metadata.get("credentials"),
    )


def _submission_id(slot: str, index: int, resubmission: int) -> str:
    return str(uuid.uuid5(uuid.UUID(slot), f"{index}:{resubmission}"))


def rows_of(artifact: Artifact) -> list[Mapping[str, Any]]:
    """Return the rows of a table, in each of the forms in which Prefect returns them."""
    data: Any = artifact.data
    rows: list[Mapping[str, Any]] = json.loads(data) if isinstance(data, str) else data
    return rows
