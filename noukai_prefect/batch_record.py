"""What a flow run knows of a batch of jobs: one table on the Prefect server, for people and for a rerun.

An artifact for each of a thousand jobs would keep Prefect's server busy for longer than the jobs run, so a
batch has one. It is written before the first request is made, and then every few seconds. What a crash keeps
it from writing down, the identities of the submissions tell: they follow from the batch's place in the run.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import Artifact

from noukai_core import Submission

from .context import RunContext
from .records import artifacts_of, now

BATCH_KEY = "noukai-jobs"

WRITE_SECONDS = 5.0
"""The shortest time between two writes of the table while jobs run, for up to a thousand of them."""

_ENDED_BADLY = ("failed", "cancelled")


@dataclass
class BatchRow:
    """One job of a batch, as the table shows it.

    Attributes:
        index: The place of its input.
        generation: How many jobs came before it for this input.
        sent: Whether its submission was sent and not refused.
    """

    index: int
    generation: int = 0
    job_id: str | None = None
    state: str = "waiting"
    seconds: float | None = None
    tokens: int | None = None
    cost_usd: str | None = None
    sent: bool = False

    @property
    def unsettled(self) -> bool:
        """Whether there may be a job that is not known."""
        return self.sent and self.job_id is None

    def renew(self) -> None:
        """Make way for a new job."""
        self.generation, self.job_id, self.sent, self.state = self.generation + 1, None, False, "waiting"

    def shown(self) -> dict[str, Any]:
        """Return it as a row of the table."""
        return {
            "index": self.index,
            "job": self.job_id,
            "state": self.state,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "cost in $": self.cost_usd,
            "generation": self.generation,
        }


class BatchRecord:
    """The table of one batch.

    Args:
        run: Where the batch runs.
        place: Which of the flow run's batches it is; a UUID that is the same in every attempt.
        flow: The Noukai flow.
        size: How many inputs there are.
    """

    def __init__(self, run: RunContext, place: str, flow: str, size: int) -> None:
        self.rows = [BatchRow(index) for index in range(size)]
        self._run = run
        self._place = place
        self._flow = flow
        self._artifact: uuid.UUID | None = None
        self._maybe_sent_at: datetime | None = None
        self._pause = max(WRITE_SECONDS, WRITE_SECONDS * size / 1000)
        self._next_write = 0.0

    async def open(self) -> None:
        """Read what an earlier attempt wrote, and write down that jobs may be sent from now on."""
        if self._run.flow_run_id is None or self._run.scope is None:
            return
        for artifact in await artifacts_of(self._run.scope, BATCH_KEY):
            if (artifact.metadata_ or {}).get("place") == self._place:
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
        identity = uuid.uuid5(uuid.UUID(self._place), f"{row.index}:{row.generation}")
        return Submission(str(identity), self._maybe_sent_at)

    async def write(self, *, final: bool) -> None:
        """Bring the table up to date; until the final time not oftener than every few seconds."""
        if self._artifact is None or (not final and time.monotonic() < self._next_write):
            return
        self._next_write = time.monotonic() + self._pause
        async with get_client() as client:
            update = ArtifactUpdate(data=self._table(), metadata_=self._metadata(final=final))
            await client.update_artifact(self._artifact, update)

    def _table(self) -> str:
        return json.dumps([row.shown() for row in self.rows])

    def _metadata(self, *, final: bool) -> dict[str, str]:
        """Tell a later attempt whose table it is, and until when something may have been sent unrecorded."""
        kept = {"place": self._place, "flow": self._flow}
        if not final or any(row.unsettled for row in self.rows):
            kept["maybe_sent_at"] = now().isoformat()
        return kept

    def _take(self, artifact: Artifact) -> None:
        self._artifact = artifact.id
        sent = (artifact.metadata_ or {}).get("maybe_sent_at")
        self._maybe_sent_at = datetime.fromisoformat(sent) if sent else None
        for kept in rows_of(artifact):
            row = self.rows[int(kept["index"])]
            row.generation, row.job_id, row.state = int(kept["generation"]), kept["job"], kept["state"]
            if row.state in _ENDED_BADLY:
                row.renew()


async def unfinished_jobs(flow_run_id: uuid.UUID) -> list[tuple[str, str]]:
    """Return the jobs of a flow run's batches whose end the tables do not show, as flow and job id."""
    return [
        ((artifact.metadata_ or {})["flow"], row["job"])
        for artifact in await artifacts_of(flow_run_id, BATCH_KEY)
        for row in rows_of(artifact)
        if row["job"] and row["state"] not in ("completed", *_ENDED_BADLY)
    ]


def rows_of(artifact: Artifact) -> list[Mapping[str, Any]]:
    """Return the rows of a table, in whichever form Prefect gives them back."""
    data: Any = artifact.data
    rows: list[Mapping[str, Any]] = json.loads(data) if isinstance(data, str) else data
    return rows
