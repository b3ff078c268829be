"""What the task of an orchestrator records about a batch, so that no try submits one of its jobs again.

Rows are only ever appended to a log, which the orchestrator keeps. The last entry of an index counts.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, TypeAlias, cast

from noukai_core.batch import SUBMITTING, JobOutcome, LedgerEntry, OutcomeState
from noukai_core.errors import JobOutputInvalidError, JobTimeoutError

Row: TypeAlias = Mapping[str, Any]
"""A row of the log, of JSON values."""

Append: TypeAlias = Callable[[list[Row]], Awaitable[None]]
"""Appends rows to the log. They are durable when this has ended."""

# Stands for all completed jobs, of which nothing more is needed: a batch may have a million of them.
_DONE = LedgerEntry(
    index=-1,
    submission_id=str(uuid.UUID(int=0)),
    session_id=str(uuid.UUID(int=0)),
    state=OutcomeState.COMPLETED,
    kept=True,
)

# A larger outcome is not recorded, but fetched again when the task is resumed.
_MAX_ROW_BYTES = 32_000


class BatchRecord:
    """The ledger of a batch, and the outcomes that the task has so far. One event loop may use it.

    Args:
        append: Appends to the log in which it is kept.

    Attributes:
        counts: How many jobs have ended, by state.
        tokens: The tokens that they used, as far as they are known.
        cost_usd: What they cost, as far as it is known.
        failures: The outcomes that are not `completed`, by index.
        outputs: The outputs that are recorded here and not in the output folder, by index.
        part: The number of the last part in the output folder that counts.
    """

    def __init__(self, append: Append) -> None:
        self._append_to_log = append
        self.counts: Counter[str] = Counter()
        self.tokens = 0
        self.cost_usd = Decimal(0)
        self.failures: dict[int, dict[str, Any]] = {}
        self.outputs: dict[int, Any] = {}
        self.part = 0
        self._entries: dict[int, LedgerEntry] = {}
        self._ended: dict[int, LedgerEntry] = {}
        self._spent: set[str | None] = set()
        self._jobs_of: defaultdict[str, set[int]] = defaultdict(set)
        self._pending: list[Row] = []
        self._appended = self._durable = 0
        self._writing = asyncio.Lock()

    @classmethod
    def load(
        cls, rows: Iterable[Row], append: Append, *, retried: bool, retry_cancelled: bool = False
    ) -> BatchRecord:
        """Read what is stored.

        Args:
            rows: The rows of the log, oldest first.
            append: Appends to the log.
            retried: Whether the inputs whose jobs failed in an earlier try are to be submitted again.
            retry_cancelled: Whether this holds even for the inputs whose jobs were cancelled.
        """
        record = cls(append)
        for row in rows:
            record._read(row)
        if retried:
            record._reopen(retry_cancelled)
            record._append({"retried": True} | ({"cancelled": True} if retry_cancelled else {}))
        return record

    # The ledger of the engine

    def read(self) -> Mapping[int, LedgerEntry]:
        """Return the entries that were loaded."""
        return self._entries

    async def write(self, entry: LedgerEntry) -> None:
        """Record an entry. One that precedes a submission is durable when this returns.

        Entries that come together are written together.
        """
        self._note_job(entry)
        if not entry.unfinished:
            self._ended[entry.index] = entry
        self._append({"entry": entry.to_list()})
        if entry.state == SUBMITTING:
            await self.store()

    # The outcomes

    def add(self, outcome: JobOutcome, *, keep_output: bool, keep_failure: bool = True) -> dict[str, Any]:
        """Count and record an outcome.

        Args:
            outcome: The outcome.
            keep_failure: Whether a job that did not complete is recorded with its reason, for a later segment
                of the same try. Otherwise only what it cost is.
            keep_output: Whether to record a completed job here, with its output. Otherwise it counts only
                when `add_part` is called.

        Returns:
            The outcome as JSON values.
        """
        row = outcome.to_json()
        if isinstance(outcome.error, JobTimeoutError):
            row["state"] = OutcomeState.TIMED_OUT.value  # even if the job was then cancelled
        if outcome.state is not OutcomeState.COMPLETED:
            self.failures[outcome.index] = row
            if keep_failure:
                self._keep(row)
            elif outcome.cost_usd is not None:
                spent = {"job_id": outcome.job_id, "tokens": outcome.tokens or 0}
                self._append({"spent": spent | {"cost_usd": str(outcome.cost_usd)}})
        elif keep_output:
            self.outputs[outcome.index] = row["output"]
            if len(json.dumps(row)) <= _MAX_ROW_BYTES:
                self._keep(row)
        self._count(row)
        return row

    def without_output(self, outcome: JobOutcome, error: JobOutputInvalidError) -> JobOutcome:
        """Take back that a job completed, since its output cannot be written: a retry submits another.

        Args:
            outcome: The outcome, which was not added.
            error: Why the output cannot be written.
        """
        state = OutcomeState.INVALID_OUTPUT
        entry = self._ended.get(outcome.index)
        if entry is not None:
            entry = self._ended[outcome.index] = replace(entry, state=state.value)
            self._append({"entry": entry.to_list()})
        return replace(outcome, state=state, output=None, error=error)

    def add_part(self, rows: Iterable[Row]) -> None:
        """Record that completed jobs are in the next part of the output folder."""
        self.part += 1
        totals: dict[str, Any] = {"part": self.part, "tokens": 0, "cost_usd": Decimal(0), "completed": 0}
        kept: list[list[Any]] = []
        for row in rows:
            totals["completed"] += 1
            totals["tokens"] += row["tokens"] or 0
            totals["cost_usd"] += Decimal(row["cost_usd"] or 0)
            if (entry := self._take_entry(row["index"])) is not None:
                kept.append(replace(entry, kept=True).to_list())
        self._append({"part": totals | {"cost_usd": str(totals["cost_usd"])}, "entries": kept})

    def session_sizes(self, sessions: Iterable[str]) -> dict[str, int]:
        """Return how many jobs each session has, finished or not."""
        return {session_id: len(self._jobs_of[session_id]) for session_id in sessions}

    def summary(self) -> dict[str, Any]:
        """Return how many jobs have ended in which state, and what they used."""
        return {
            "jobs": sum(self.counts.values()),
            "counts": {state.value: self.counts[state] for state in OutcomeState if self.counts[state]},
            "tokens": self.tokens,
            "cost_usd": str(self.cost_usd),
        }

    async def store(self) -> None:
        """Return when everything that was recorded so far is durable."""
        goal = self._appended
        while self._durable < goal:
            async with self._writing:
                if self._durable >= goal:
                    return
                rows, end = self._pending, self._appended
                self._pending = []
                try:
                    await self._append_to_log(rows)
                except BaseException:
                    self._pending = rows + self._pending
                    raise
                self._durable = end

    # Inside

    def _note_job(self, entry: LedgerEntry) -> None:
        if entry.job_id is not None:
            self._jobs_of[entry.session_id].add(hash(entry.job_id))

    def _append(self, row: Row) -> None:
        self._pending.append(row)
        self._appended += 1

    def _keep(self, row: dict[str, Any]) -> None:
        entry = self._take_entry(row["index"])
        if entry is not None:
            self._append({"entry": replace(entry, kept=True).to_list(), "outcome": row})

    def _take_entry(self, index: int) -> LedgerEntry | None:
        return self._ended.pop(index, None) or self._entries.get(index)

    def _count(self, row: Mapping[str, Any]) -> None:
        self.counts[str(row["state"])] += 1
        self.tokens += row["tokens"] or 0
        self.cost_usd += Decimal(row["cost_usd"] or 0)

    def _read(self, row: Row) -> None:
        """Take over a stored row, unless it is malformed."""
        try:
            if "retried" in row:
                self._reopen(bool(row.get("cancelled")))
            for entry in _entries_in(row):
                self._note_job(entry)
                done = entry.kept and entry.state == OutcomeState.COMPLETED
                self._entries[entry.index] = _DONE if done else entry
            # A row whose write seemed to fail may be there twice.
            if (
                "spent" in row
                and (spent := cast("dict[str, Any]", row["spent"]))["job_id"] not in self._spent
            ):
                self._spent.add(spent["job_id"])
                self.tokens += spent["tokens"]
                self.cost_usd += Decimal(spent["cost_usd"])
            if "part" in row and (part := cast("dict[str, Any]", row["part"]))["part"] > self.part:
                self.part = part["part"]
                self.counts["completed"] += part["completed"]
                self.tokens += part["tokens"]
                self.cost_usd += Decimal(part["cost_usd"])
            if "outcome" in row:
                outcome = cast("dict[str, Any]", row["outcome"])
                if outcome["index"] not in self.outputs and outcome["index"] not in self.failures:
                    self._count(outcome)
                if outcome["state"] == OutcomeState.COMPLETED:
                    self.outputs[outcome["index"]] = outcome["output"]
                else:
                    self.failures[outcome["index"]] = outcome
        except (ValueError, TypeError, KeyError, ArithmeticError):
            return

    def _reopen(self, cancelled: bool) -> None:
        """Let the jobs that did not complete be submitted again."""
        for index, row in list(self.failures.items()):
            entry = self._entries.get(index)
            if entry is None or (row["state"] == OutcomeState.CANCELLED and not cancelled):
                continue
            self._entries[index] = replace(entry, kept=False)
            self.counts[row["state"]] -= 1
            del self.failures[index]


def entries_of(rows: Iterable[Row]) -> dict[int, LedgerEntry]:
    """Return the last entry of each index in rows of a log. Malformed rows are left out."""
    found: dict[int, LedgerEntry] = {}
    for row in rows:
        try:
            found.update((entry.index, entry) for entry in _entries_in(row))
        except (ValueError, TypeError):
            continue
    return found


def _entries_in(row: Row) -> list[LedgerEntry]:
    stored = [*row.get("entries", ()), *([row["entry"]] if "entry" in row else ())]
    return [LedgerEntry.from_list(entry) for entry in stored]
