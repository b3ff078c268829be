"""The table of a batch, in which people see its jobs."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterId
from prefect.client.schemas.objects import Artifact

from noukai_core import JobOutcome, JobState, OutcomeState
from noukai_prefect._artifacts import artifact_key
from noukai_prefect._prefect_client import prefect_client
from noukai_prefect._run_context import RunContext
from noukai_prefect._text import dollars, markdown
from noukai_prefect.credentials import NoukaiCredentials

WRITE_SECONDS = 5.0
"""The shortest time between two writes of a table with a thousand rows."""

MAX_ROWS = 1_000
"""How many jobs a table shows: those that did not complete, and then the first ones."""

_WAITING = "waiting"
_MAX_SHOWN_INPUT = 60
_ORDER = ("completed", "failed", "cancelled", "running", "pending", "submitting", _WAITING)


@dataclass(slots=True)
class BatchRow:
    """One job of a batch.

    Attributes:
        index: The position of its input.
        input: The beginning of its input.
        state: The job's state; before and instead of a job, what happens to the submission.
        outcome: What came of it.
        page: The address of the job's page.
    """

    index: int
    input: str = ""
    state: str = _WAITING
    job_id: str | None = None
    reason: str | None = None
    seconds: float | None = None
    tokens: int | None = None
    cost_usd: Decimal | None = None

    @property
    def unsuccessful(self) -> bool:
        """Whether it ended without an output."""
        return self.reason is not None or self.state in (JobState.FAILED, JobState.CANCELLED)

    def note(self, outcome: JobOutcome) -> None:
        """Show what came of the input."""
        self.state, self.job_id, self.reason = outcome.state.value, outcome.job_id, outcome.reason
        self.seconds, self.tokens, self.cost_usd = round(outcome.seconds, 1), outcome.tokens, outcome.cost_usd

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
    """The table of one batch.

    Args:
        run: Where the batch runs. Outside a run, there is no table.
        flow: The Noukai flow.
        size: The number of inputs, if it is known.
        credentials: The credentials that submit the jobs.
        traced: Whether the jobs are traced, so that costs are expected.

    Attributes:
        artifact: The artifact.
    """

    def __init__(
        self,
        run: RunContext,
        flow: str,
        size: int | None,
        credentials: NoukaiCredentials,
        *,
        traced: bool = False,
    ) -> None:
        self.artifact: uuid.UUID | None = None
        self._traced = traced
        self._run = run
        self._flow = flow
        self._size = size
        self._credentials = credentials
        self._rows: dict[int, BatchRow] = {}
        self._others: dict[int, str] = {}
        self._ended: Counter[str] = Counter()
        self._running: Mapping[int, str] = {}
        self._cost = Decimal(0)
        self._without_cost = 0
        self._next_write = 0.0

    @property
    def subject(self) -> str:
        """The batch, as log lines and other places name it."""
        return f"Noukai batch of {size_text(self._size)} jobs of {self._flow}"

    @property
    def ended(self) -> int:
        """How many inputs have an outcome."""
        return sum(self._ended.values())

    def note_input(self, index: int, beginning: str) -> None:
        """Show an input."""
        if len(self._rows) < MAX_ROWS:
            self._rows[index] = BatchRow(index, beginning)
        else:
            self._others[index] = beginning

    def note_kept(self) -> None:
        """Count an input whose job has completed in an earlier attempt, which has kept its outcome."""
        self._ended[OutcomeState.COMPLETED] += 1

    def note_running(self, states: Mapping[int, str], jobs: Mapping[int, str]) -> None:
        """Show the states of the unfinished jobs.

        Args:
            states: The state of each.
            jobs: The job of each, if it is known.
        """
        self._running = states
        for index, state in states.items():
            if (row := self._rows.get(index)) is not None:
                row.state, row.job_id = state, jobs.get(index)

    def note_outcome(self, outcome: JobOutcome) -> None:
        """Show what came of an input."""
        self._ended[outcome.state.value] += 1
        self._cost += outcome.cost_usd or 0
        self._without_cost += outcome.lacks_cost
        beginning = self._others.pop(outcome.index, "")
        row = self._rows.get(outcome.index)
        if row is None and outcome.state is not OutcomeState.COMPLETED:
            row = self._replace_completed(BatchRow(outcome.index, beginning))
        if row is not None:
            row.note(outcome)

    def note_cancelled(self, cancelled: Mapping[int, str], states: Mapping[str, str]) -> None:
        """Show how jobs ended that were cancelled because the task was interrupted.

        Args:
            cancelled: The job of each, by the index of its input.
            states: The states of jobs after the cancel, as far as they are known: one may have completed.
        """
        for index, job_id in cancelled.items():
            state = states.get(job_id, JobState.CANCELLED.value)
            self._ended[state] += 1
            if (row := self._rows.get(index)) is not None:
                row.job_id, row.state = job_id, state
        self._running = {index: state for index, state in self._running.items() if index not in cancelled}

    def _replace_completed(self, row: BatchRow) -> BatchRow | None:
        """Show a row in the place of one of a completed job."""
        for index in reversed(self._rows):
            if self._rows[index].state == OutcomeState.COMPLETED:
                del self._rows[index]
                self._rows[row.index] = row
                return row
        return None

    async def write(self, *, final: bool) -> None:
        """Write the table, unless that was done a few seconds ago; a final write is always made."""
        if self._run.scope is None or (not final and time.monotonic() < self._next_write):
            return
        self._next_write = time.monotonic() + WRITE_SECONDS
        async with prefect_client() as client:
            if self.artifact is None:
                table = ArtifactCreate(
                    key=artifact_key("noukai-jobs", self._flow),
                    type="table",
                    description=self._description(),
                    data=self._data(),
                    flow_run_id=self._run.flow_run_id,
                    task_run_id=self._run.task_run_id,
                )
                self.artifact = (await client.create_artifact(table)).id
            else:
                update = ArtifactUpdate(data=self._data(), description=self._description())
                await client.update_artifact(self.artifact, update)

    def counts(self) -> str:
        """Return how many jobs are in each state and what they cost, such as `5 completed, $0.41`."""
        counted = self._ended + Counter(self._running.values())
        waiting = 0 if self._size is None else self._size - sum(counted.values())
        if waiting > 0:
            counted[_WAITING] = waiting
        states = [*(state for state in _ORDER if counted[state]), *sorted(set(counted) - set(_ORDER))]
        named = [f"{counted[state]:,} {state.replace('_', ' ')}" for state in states]
        if self._cost:
            named.append(dollars(self._cost))
        if self._traced and self._without_cost:
            named.append(f"{self._without_cost:,} without a known cost")
        return ", ".join(named)

    def _description(self) -> str:
        shown = f" (at most {MAX_ROWS:,} are shown)" if len(self._rows) >= MAX_ROWS else ""
        return f"{size_text(self._size)} Noukai jobs of {self._flow}: {self.counts()}{shown}"

    def _data(self) -> str:
        ordered = sorted(self._rows.values(), key=lambda row: (not row.unsuccessful, row.index))
        shown = [
            row.as_table_row(self._credentials.page_of(self._flow, row.job_id) if row.job_id else None)
            for row in ordered
        ]
        used = [name for name in (shown[0] if shown else ()) if any(row[name] is not None for row in shown)]
        return json.dumps([{name: row[name] for name in used} for row in shown])


def size_text(size: int | None) -> str:
    """Return how many jobs a batch has, in words."""
    return "many" if size is None else str(size)


async def show_ended(table: uuid.UUID, states: Mapping[int, str]) -> None:
    """Show in the table of a batch how jobs ended, by the index of their input."""
    wanted = ArtifactFilter(id=ArtifactFilterId(any_=[table]))
    async with prefect_client() as client:
        for artifact in await client.read_artifacts(artifact_filter=wanted):
            await client.update_artifact(artifact.id, ArtifactUpdate(data=_with_states(artifact, states)))


def _with_states(table: Artifact, states: Mapping[int, str]) -> str:
    data: Any = json.loads(table.data) if isinstance(table.data, str) else table.data
    for row in data:
        row["state"] = states.get(row["#"], row["state"])
    return json.dumps(data)
