"""Many jobs: what comes of each input, and what a rerun needs to know.

`Flow.jobs` and `AsyncFlow.jobs` run a batch. A batch writes what it does into a ledger, so that a later
process can go on with it: it takes what has completed, attaches to what runs, and submits what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol, Self, TypeAlias
from uuid import UUID, uuid4, uuid5

from noukai_core import _validation
from noukai_core._amounts import count_or_none
from noukai_core.errors import JobFailedError, NoukaiError
from noukai_core.job_request import JobRequest
from noukai_core.output_types import json_output

JobInput: TypeAlias = str | Mapping[str, Any] | JobRequest
"""One input of a batch: a message, a mapping with its arguments, or a request."""

SUBMITTING = "submitting"
"""The state of an entry whose submission is possibly sent."""

SUBMITTED = "submitted"
"""The state of an entry whose job is known and was not seen to end."""


class OutcomeState(StrEnum):
    """What can come of an input."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INVALID_OUTPUT = "invalid_output"
    """The job completed, but its output is not of the `output_type`."""
    TIMED_OUT = "timed_out"
    """The job did not end in time, and was left running.

    One that was cancelled at its deadline is `CANCELLED`, with a `JobTimeoutError`. Airflow's tasks, and the
    files and the manifest of Prefect's, list it as `timed_out` as well.
    """
    REJECTED = "rejected"
    """There is no job: the input is invalid, or the server rejected it."""
    UNKNOWN = "unknown"
    """It is not known whether there is a job, or the job could not be polled any more."""
    NOT_SUBMITTED = "not_submitted"
    """The batch was stopped before this input was submitted."""

    @property
    def ended(self) -> bool:
        """Whether there is a job, and it has ended."""
        return self in (
            OutcomeState.COMPLETED,
            OutcomeState.FAILED,
            OutcomeState.CANCELLED,
            OutcomeState.INVALID_OUTPUT,
        )


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What came of one of many inputs.

    Attributes:
        index: The position of the input.
        job_id: The job, if there is one.
        state: How the input ended.
        output: The output of a completed job; an instance of the `output_type`, if one was asked for.
        error: Why the job did not complete, or `None`.
        seconds: From the submission, or from attaching to an earlier job, to the end.
        tokens: The tokens in the job's trace, if it was traced and the trace could be read.
        cost_usd: The job's cost in US dollars, if the trace tells all of it.
        key: Your own name of the input, if it has one.
    """

    index: int
    job_id: str | None
    state: OutcomeState
    output: Any = None
    error: NoukaiError | None = None
    seconds: float = 0.0
    tokens: int | None = None
    cost_usd: Decimal | None = None
    key: str | None = None

    @property
    def lacks_cost(self) -> bool:
        """Whether its job has ended, and it is not known what that job cost."""
        return self.state.ended and self.cost_usd is None

    @property
    def reason(self) -> str | None:
        """Why the job did not complete, without its id; `None` if it did."""
        if isinstance(self.error, JobFailedError) and self.error.status and self.error.status.error:
            return self.error.status.error
        if self.error is None or self.job_id is None:
            return None if self.error is None else str(self.error)
        return re.sub(rf"^Noukai job {re.escape(self.job_id)}(?: of \S+)?:? ", "", str(self.error))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, for a line of JSONL.

        Raises:
            JobOutputInvalidError: The output is an instance of a model that cannot be written as JSON.
        """
        return {
            "index": self.index,
            "key": self.key,
            "state": self.state.value,
            "output": json_output(self.output, job_id=str(self.job_id)),
            "error": self.reason,
            "job_id": self.job_id,
            "tokens": self.tokens,
            "cost_usd": None if self.cost_usd is None else str(self.cost_usd),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """What a ledger keeps about one input. The last entry of an index is the one that counts.

    Attributes:
        index: The position of the input.
        submission_id: The id of its submission.
        session_id: The session that it is submitted under.
        job_id: The job, once it is known.
        state: `submitting`, `submitted`, or the `OutcomeState` at the end.
        resubmission: How many jobs preceded this one for the input.
        sent_at: When the submission was possibly sent, with a time zone.
        kept: Whether the owner of the ledger has the outcome itself. A rerun neither submits such an input
            nor returns an outcome for it.
        others: While it is `submitting`: which jobs of the session belong to other inputs, as digests.
        in_users_session: Whether the session is one of the user's, whose list cannot tell which job this is.
        concurrent: What other attempts, which lived at the same time, recorded of the same submission in
            sessions of their own. A ledger does not keep it.
    """

    index: int
    submission_id: str
    session_id: str
    job_id: str | None = None
    state: str = SUBMITTING
    resubmission: int = 0
    sent_at: datetime | None = None
    kept: bool = False
    in_users_session: bool = False
    others: str = ""
    concurrent: tuple[LedgerEntry, ...] = ()

    @property
    def unfinished(self) -> bool:
        """Whether there may be a job that was not seen to end."""
        return self.state in (SUBMITTING, SUBMITTED)

    def to_list(self) -> list[Any]:
        """Return it as a flat list of JSON values."""
        sent_at = None if self.sent_at is None else self.sent_at.isoformat()
        return [
            self.index,
            self.submission_id,
            self.session_id,
            self.job_id,
            self.state,
            self.resubmission,
            sent_at,
            self.kept,
            self.in_users_session,
            self.others,
        ]

    @classmethod
    def from_list(cls, stored: Any) -> Self:
        """Read an entry.

        Raises:
            ValueError: It is not one.
        """
        match stored:
            case [
                int(index),
                str(submission_id),
                str(session_id),
                str() | None as job_id,
                str(state),
                int(resubmission),
                str() | None as sent_at,
                bool(kept),
                bool(in_users_session),
                str(others),
            ] if None not in map(count_or_none, (index, resubmission)) and state in _STORED_STATES:
                return cls(
                    index=index,
                    submission_id=_validation.session_id(submission_id, "the id of a submission"),
                    session_id=_validation.session_id(session_id),
                    job_id=None if job_id is None else _validation.job_id(job_id),
                    state=state,
                    resubmission=resubmission,
                    sent_at=_moment(sent_at),
                    kept=kept,
                    in_users_session=in_users_session,
                    others=others,
                )
            case _:
                raise ValueError("this is no entry of a batch's ledger")


def _moment(text: str | None) -> datetime | None:
    return None if text is None else _validation.moment(datetime.fromisoformat(text), "sent_at")


def new_session_of(batch_id: UUID) -> str:
    """Return a new session for jobs of a batch."""
    return str(UUID(bytes=_session_prefix(batch_id) + uuid4().bytes[6:], version=4))


def is_session_of(session_id: str, batch_id: UUID) -> bool:
    """Return whether a session is one that was made for the jobs of a batch, for entries of unsure origin."""
    return UUID(session_id).bytes[:6] == _session_prefix(batch_id)


def _session_prefix(batch_id: UUID) -> bytes:
    return uuid5(batch_id, "session").bytes[:6]


def submission_id_of(batch_id: UUID, index: int, resubmission: int) -> str:
    """Return the id of a submission of a batch."""
    return str(uuid5(batch_id, f"{index}:{resubmission}"))


# A later version may have more. An entry in one of those is not understood, so the one before it counts.
_STORED_STATES = (SUBMITTING, SUBMITTED, *OutcomeState)


class BatchLedger(Protocol):
    """Keeps what a rerun of a batch needs. With an async client, both methods may be coroutines.

    An entry in the state `submitting` is written before its submission is sent, and must be durable when
    `write` returns. An entry in another state may become durable later, but at the latest with the next
    `submitting` entry of the same session. So a ledger may write the entries of several sessions together.
    """

    def read(self) -> Mapping[int, LedgerEntry] | Awaitable[Mapping[int, LedgerEntry]]:
        """Return the last entry of each index, as an earlier run left them."""
        ...

    def write(self, entry: LedgerEntry) -> Awaitable[None] | None:
        """Keep an entry in the place of an earlier one with the same index.

        What it raises ends the batch. Jobs are left running, and nothing more is submitted.
        """
        ...


class MemoryLedger:
    """A ledger for as long as the process lives.

    Attributes:
        entries: The last entry of each index.
    """

    def __init__(self) -> None:
        self.entries: dict[int, LedgerEntry] = {}

    def read(self) -> Mapping[int, LedgerEntry]:
        """Return a copy of the entries."""
        return dict(self.entries)

    def write(self, entry: LedgerEntry) -> None:
        """Keep an entry."""
        self.entries[entry.index] = entry
