"""What the task of an orchestrator records about a batch, so that no try submits one of its jobs again.

Rows are only ever appended to a log, which the orchestrator keeps. The last entry of an index counts, unless
two attempts that lived at the same time recorded the same submission.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias, TypeVar

from noukai_core._amounts import count_or_none, dollars_or_none, number_or_none
from noukai_core.batch import SUBMITTING, JobOutcome, LedgerEntry, OutcomeState
from noukai_core.batch_files import OutcomePart, is_part
from noukai_core.errors import JobOutputInvalidError, JobTimeoutError

T = TypeVar("T")

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

_ENDED = frozenset(state.value for state in OutcomeState if state.ended)

_OTHER_ROWS = frozenset(("spent", "part", "written", "retried"))

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
        jobs_without_cost: How many of them have ended at a cost that is not known.
        failures: The outcomes that are not `completed`, by index.
        outputs: The outputs that are recorded here and not in the output folder, by index.
        parts: The names of the parts in the output folder that count.
        begun_parts: The parts of which it is not recorded that they are written, by name.
    """

    def __init__(self, append: Append) -> None:
        self._append_to_log = append
        self.counts: Counter[str] = Counter()
        self.tokens = 0
        self.cost_usd = Decimal(0)
        self.jobs_without_cost = 0
        self.failures: dict[int, dict[str, Any]] = {}
        self.outputs: dict[int, Any] = {}
        self.parts: list[str] = []
        self.begun_parts: dict[str, _Part] = {}
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
                when `end_part` is called.

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
            elif outcome.state.ended:
                self._append({"spent": {name: row[name] for name in ("job_id", "tokens", "cost_usd")}})
        elif keep_output:
            self.outputs[outcome.index] = row["output"]
            if len(json.dumps(row)) <= _MAX_ROW_BYTES:
                self._keep(row)
        self._count(row, ended=outcome.state.ended)
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

    async def begin_part(self, part: OutcomePart) -> None:
        """Record what a part of the output folder will hold, before it is written.

        The part counts with `end_part`. If this process ends before that, the next one calls `adopt_part`.

        Args:
            part: The part.
        """
        rows = [[row["index"], row["tokens"], row["cost_usd"]] for row in part.rows]
        self._append({"part": {"name": part.name, "digest": _digest(part.text.encode()), "rows": rows}})
        await self.store()

    def end_part(self, part: OutcomePart) -> None:
        """Record that a part of the output folder is written."""
        for row in part.rows:
            self._ended.pop(row["index"], None)
        self.parts.append(part.name)
        self._append({"written": part.name})

    def adopt_part(self, name: str, content: bytes) -> bool:
        """Let a part count that was written just before a crash, so that its jobs are not written again.

        Args:
            name: The name of the part, one of `begun_parts`.
            content: The content of the file of this name.

        Returns:
            Whether the file holds what was to be written. Otherwise nothing changes.
        """
        part = self.begun_parts[name]
        if _digest(content) != part.digest:
            return False
        self._read_part(self.begun_parts.pop(name))
        self._append({"written": name})
        return True

    def session_sizes(self, sessions: Iterable[str]) -> dict[str, int]:
        """Return how many jobs each session has, finished or not."""
        return {session_id: len(self._jobs_of[session_id]) for session_id in sessions}

    @property
    def spent_usd(self) -> Decimal | None:
        """What the jobs that have ended cost; `None` if that is not known of all."""
        return None if self.jobs_without_cost else self.cost_usd

    def summary(self) -> dict[str, Any]:
        """Return how many jobs have ended in which state, and what they used."""
        return {
            "jobs": sum(self.counts.values()),
            "counts": {state.value: self.counts[state] for state in OutcomeState if self.counts[state]},
            "tokens": self.tokens,
            "cost_usd": str(self.cost_usd),
            "jobs_without_cost": self.jobs_without_cost,
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

    def _count(self, row: Mapping[str, Any], *, ended: bool) -> None:
        self.counts[str(row["state"])] += 1
        if not ended:
            return
        cost_usd = row["cost_usd"]
        used = _Used(row["tokens"] or 0, None if cost_usd is None else Decimal(cost_usd))
        if row["state"] == OutcomeState.COMPLETED:
            self._add_used(used)
        else:
            self._add_spent(row["job_id"], used)

    def _add_spent(self, job_id: str | None, used: _Used) -> None:
        """Add what a job used that did not complete, which more than one attempt may have recorded."""
        if job_id not in self._spent:
            if job_id is not None:
                self._spent.add(job_id)
            self._add_used(used)

    def _add_used(self, used: _Used) -> None:
        self.tokens += used.tokens
        if used.cost_usd is None:
            self.jobs_without_cost += 1
        else:
            self.cost_usd += used.cost_usd

    def _read(self, row: Row) -> None:
        """Take over a stored row, unless it is malformed: then the rows before it count."""
        try:
            entry = LedgerEntry.from_list(row["entry"]) if "entry" in row else None
            outcome = _outcome_row(row["outcome"]) if "outcome" in row else None
            spent = _Spent.of(row["spent"]) if "spent" in row else None
            part = _Part.of(row["part"]) if "part" in row else None
        except (ValueError, TypeError, KeyError):
            return
        if "retried" in row:
            self._reopen(bool(row.get("cancelled")))
        if outcome is not None and entry is not None and entry.index == outcome["index"]:
            if self._read_entry(entry):
                self._read_outcome(outcome, ended=entry.state in _ENDED)
        elif entry is not None:
            self._read_entry(replace(entry, kept=False))
        if spent is not None:
            self._add_spent(spent.job_id, spent.used)
        if part is not None and part.name not in self.parts:
            self.begun_parts[part.name] = part
        if (part := self._begun_part(row.get("written"))) is not None:
            self._read_part(part)

    def _begun_part(self, name: object) -> _Part | None:
        return self.begun_parts.pop(name, None) if isinstance(name, str) else None

    def _read_entry(self, entry: LedgerEntry) -> bool:
        """Take over an entry, and return whether it is the one that counts."""
        self._note_job(entry)
        earlier = self._entries.get(entry.index)
        # Another attempt that is alive as well may still record a job that is done.
        if earlier is _DONE:
            return False
        latest = _latest(earlier, entry)
        counts = (latest.session_id, latest.state) == (entry.session_id, entry.state)
        done = counts and entry.kept and entry.state == OutcomeState.COMPLETED
        self._entries[entry.index] = _DONE if done else latest
        return counts

    def _read_part(self, part: _Part) -> None:
        """Count the jobs of a part, but for those that are in a part of another attempt as well."""
        self.parts.append(part.name)
        for index, used in part.rows.items():
            if self._entries.get(index) is not _DONE:
                self._entries[index] = _DONE
                self._forget_failure(index)
                self.counts[OutcomeState.COMPLETED.value] += 1
                self._add_used(used)

    def _read_outcome(self, outcome: dict[str, Any], *, ended: bool) -> None:
        index = outcome["index"]
        if index in self.outputs:
            return
        self._forget_failure(index)
        self._count(outcome, ended=ended)
        if outcome["state"] == OutcomeState.COMPLETED:
            self.outputs[index] = outcome["output"]
        else:
            self.failures[index] = outcome

    def _forget_failure(self, index: int) -> None:
        """Discard the failure of an input that has completed in another attempt, or has another outcome."""
        if (failure := self.failures.pop(index, None)) is not None:
            self.counts[failure["state"]] -= 1

    def _reopen(self, cancelled: bool) -> None:
        """Let the jobs that did not complete be submitted again."""
        for index, row in list(self.failures.items()):
            entry = self._entries.get(index)
            if entry is None or (row["state"] == OutcomeState.CANCELLED and not cancelled):
                continue
            self._entries[index] = replace(entry, kept=False)
            self.counts[row["state"]] -= 1
            del self.failures[index]


def is_row(row: Row) -> bool:
    """Return whether this is a row of a log; one that somebody has changed may have been an entry."""
    if "entry" not in row:
        return not _OTHER_ROWS.isdisjoint(row)
    try:
        LedgerEntry.from_list(row["entry"])
    except ValueError:
        return False
    return True


def entries_of(rows: Iterable[Row]) -> dict[int, LedgerEntry]:
    """Return the entry of each index in rows of a log. Malformed rows are left out."""
    found: dict[int, LedgerEntry] = {}
    for row in rows:
        if "entry" in row:
            with suppress(ValueError):
                entry = LedgerEntry.from_list(row["entry"])
                found[entry.index] = _latest(found.get(entry.index), entry)
    return found


def _latest(earlier: LedgerEntry | None, entry: LedgerEntry) -> LedgerEntry:
    """Return the entry that counts: the last one, unless two attempts that lived at the same time wrote them.

    Each of those submits in a session of its own, so a job of the submission may be in any of the sessions.
    One that was cut off for a while may write about a job that another has replaced since.
    """
    if earlier is None:
        return entry
    if entry.resubmission < earlier.resubmission:
        return earlier
    if earlier.submission_id != entry.submission_id or entry.job_id is not None:
        return entry
    if earlier.job_id is not None:
        return earlier
    known = (*earlier.concurrent, replace(earlier, concurrent=()), entry)
    unsure = {one.session_id: one for one in known}
    *others, last = [one for one in unsure.values() if one.unfinished] or [entry]
    return replace(last, concurrent=tuple(others))


class _Used(NamedTuple):
    """What a job used. Tokens that are not known are none, but a cost that is not known is `None`."""

    tokens: int
    cost_usd: Decimal | None


class _Spent(NamedTuple):
    """What a job used that did not complete, as it is stored."""

    job_id: str | None
    used: _Used

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> _Spent:
        used = _stored_used(stored["tokens"], stored["cost_usd"])
        return cls(_text_or_none(stored["job_id"]), used)


class _Part(NamedTuple):
    """A part of the output folder, as it is stored: what it holds, and what each of its jobs used."""

    name: str
    digest: str
    rows: dict[int, _Used]

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> _Part:
        name, digest = stored["name"], stored["digest"]
        if not isinstance(name, str) or not is_part(name) or not isinstance(digest, str):
            raise ValueError("this is no part of the output folder")
        return cls(
            name,
            digest,
            {
                _known(count_or_none(index)): _stored_used(tokens, cost_usd)
                for index, tokens, cost_usd in stored["rows"]
            },
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _outcome_row(stored: Any) -> dict[str, Any]:
    """Read an outcome that `JobOutcome.to_json` wrote, from a place that others may write to as well.

    Raises:
        ValueError: It is none.
    """
    try:
        cost_usd = stored["cost_usd"]
        return {
            "index": _known(count_or_none(stored["index"])),
            "key": _text_or_none(stored["key"]),
            "state": OutcomeState(stored["state"]).value,
            "output": stored["output"],
            "error": _text_or_none(stored["error"]),
            "job_id": _text_or_none(stored["job_id"]),
            "tokens": None if stored["tokens"] is None else _known(count_or_none(stored["tokens"])),
            "cost_usd": None if cost_usd is None else str(_known(dollars_or_none(cost_usd))),
            "seconds": _known(number_or_none(stored["seconds"])),
        }
    except (TypeError, KeyError) as error:
        raise ValueError("this is no outcome of a batch") from error


def _stored_used(tokens: object, cost_usd: object) -> _Used:
    return _Used(
        0 if tokens is None else _known(count_or_none(tokens)),
        None if cost_usd is None else _known(dollars_or_none(cost_usd)),
    )


def _known(value: T | None) -> T:
    if value is None:
        raise ValueError("a stored number is none, or out of its range")
    return value


def _text_or_none(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ValueError("a stored text is none")
