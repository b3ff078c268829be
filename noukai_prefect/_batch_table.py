"""What a flow run knows of a batch of jobs: one table on the Prefect server, for people and for a rerun.

An artifact for each of a thousand jobs would keep Prefect's server busy for longer than the jobs run, so a
batch has one. It is written before the first request is made, and then every few seconds. What a crash keeps
it from writing down, the identities of the submissions tell: they follow from the batch's place in the run.
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
from noukai_prefect._job_store import JobRecord, artifacts_of, now, own_artifacts
from noukai_prefect._run_context import RunContext

BATCH_KEY = "noukai-jobs"

WRITE_SECONDS = 5.0
"""The shortest time between two writes of the table while jobs run, for up to a thousand of them."""

_ENDED_BADLY = ("failed", "cancelled")
_ENDED = ("completed", *_ENDED_BADLY)


@dataclass(slots=True)
class BatchRow:
    """One job of a batch, as the table shows it.

    Attributes:
        index: The place of its input.
        generation: How many jobs came before it for this input.
        sent: Whether its submission was sent and not refused.
        surely_new: Whether no earlier attempt can have sent its submission.
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
    surely_new: bool = False

    @property
    def unsettled(self) -> bool:
        """Whether there may be a job that is not known."""
        return self.sent and self.job_id is None

    @property
    def going_on(self) -> bool:
        """Whether there is a job whose end was not seen, even if nobody waits for it any more."""
        return self.job_id is not None and self.state not in _ENDED

    def renew(self) -> None:
        """Make way for a new job."""
        self.resubmission, self.job_id, self.sent, self.state = self.resubmission + 1, None, False, "waiting"
        self.error = None

    def shown(self) -> dict[str, Any]:
        """Return it as a row of the table."""
        return {
            "index": self.index,
            "job": self.job_id,
            "state": self.state,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "cost in $": self.cost_usd,
            "error": self.error,
            "generation": self.resubmission,
        }


class BatchTable:
    """The table of one batch.

    Args:
        run: Where the batch runs.
        place: Which of the flow run's batches it is; a UUID that is the same in every attempt.
        flow: The Noukai flow.
        size: How many inputs there are.
        credentials: The name of the stored block whose key is used, if it is one.

    Attributes:
        rows: The jobs, in the order of the inputs.
        written_at: When an earlier attempt last wrote the table: no job that was read from it is younger.
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
        """Read what an earlier attempt wrote, and write down that jobs may be sent from now on."""
        if self._run.scope is None:
            return
        for artifact in await own_artifacts(self._run, BATCH_KEY):
            if (artifact.metadata_ or {}).get("place") == self._slot:
                self._take(artifact)
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
        """Return the identity of a row's submission, and when an earlier attempt may have sent it."""
        last_sent_at = None if row.surely_new else self._possibly_sent_at
        return Submission(_submission_id(self._slot, row.index, row.resubmission), last_sent_at)

    async def write(self, *, final: bool) -> None:
        """Bring the table up to date; until the final time not oftener than every few seconds."""
        if self._artifact is None or (not final and time.monotonic() < self._next_write):
            return
        self._next_write = time.monotonic() + self._pause
        async with get_client() as client:
            update = ArtifactUpdate(data=self._table(), metadata_=self._metadata(final=final))
            await client.update_artifact(self._artifact, update)

    def _table(self) -> str:
        # Row by row: a thousand rows as dictionaries at once are half a megabyte.
        return f"[{', '.join(json.dumps(row.shown()) for row in self.rows)}]"

    def _metadata(self, *, final: bool) -> dict[str, str]:
        """Tell a later attempt whose table it is, and until when something may have been sent unrecorded."""
        kept = {"place": self._slot, "flow": self._flow}
        if self._credentials is not None:
            kept["credentials"] = self._credentials
        if not final or any(row.unsettled for row in self.rows):
            kept["possibly_sent_at"] = now().isoformat()
        return kept

    def _take(self, artifact: Artifact) -> None:
        self._artifact, self.written_at = artifact.id, artifact.updated
        sent = (artifact.metadata_ or {}).get("possibly_sent_at")
        self._possibly_sent_at = datetime.fromisoformat(sent) if sent else None
        for kept in rows_of(artifact):
            row = self.rows[int(kept["index"])]
            row.resubmission, row.job_id, row.state = int(kept["generation"]), kept["job"], kept["state"]
            if row.state in _ENDED_BADLY:
                row.renew()
                row.surely_new = True  # or that attempt would have begun with a table that says so


async def read_unfinished(scopes: Sequence[uuid.UUID]) -> list[JobRecord]:
    """Return the jobs, and submissions, of batches whose end the tables do not show.

    A table may be some seconds behind the jobs. See `artifacts_of` for the scopes.
    """
    return [
        _record(artifact, row)
        for artifact in await artifacts_of(scopes, BATCH_KEY)
        for row in rows_of(artifact)
        if row["state"] not in _ENDED and (row["job"] or "possibly_sent_at" in (artifact.metadata_ or {}))
    ]


async def note_cancelled(scopes: Sequence[uuid.UUID], cancelled: Mapping[str, str]) -> None:
    """Show in the tables which jobs were cancelled from outside, so that a rerun submits new ones.

    Args:
        scopes: Where the batches ran; see `artifacts_of`.
        cancelled: The ids of the jobs, by the identity of the submission.
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
    slot, resubmission = metadata["place"], int(row["generation"])
    return JobRecord(
        submission_id=_submission_id(slot, int(row["index"]), resubmission),
        flow=metadata["flow"],
        slot=slot,
        resubmission=resubmission,
        last_sent_at=artifact.updated,  # no job of the table is younger
        job_id=row["job"],
        credentials=metadata.get("credentials"),
    )


def _submission_id(slot: str, index: int, resubmission: int) -> str:
    return str(uuid.uuid5(uuid.UUID(slot), f"{index}:{resubmission}"))


def rows_of(artifact: Artifact) -> list[Mapping[str, Any]]:
    """Return the rows of a table, in whichever form Prefect gives them back."""
    data: Any = artifact.data
    rows: list[Mapping[str, Any]] = json.loads(data) if isinstance(data, str) else data
    return rows
