"""What is reported about a batch: its progress, and when its task fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from noukai_airflow.exceptions import NoukaiBatchFailedException
from noukai_core import InvalidInputError, OutcomeState, one_line

if TYPE_CHECKING:
    from noukai_core.batch_record import BatchRecord

FailOn: TypeAlias = Literal["any", "all"] | float

PROGRESS_SECONDS = 10.0
"""How often the progress is written at most."""

_NAMED_FAILURES = 3
_MAX_REASON = 300


def check_fail_on(value: object) -> FailOn:
    """Check when a task fails.

    Raises:
        InvalidInputError: It is neither `any` nor `all` nor a share.
    """
    if value in ("any", "all"):
        return cast("FailOn", value)
    if isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    raise InvalidInputError(
        f"fail_on is {value!r:.100}, but must be 'any', 'all', or a share of the jobs from 0 to below 1, "
        "such as 0.05"
    )


def check_max_cost(value: Decimal | float | str | None, *, trace: bool) -> Decimal | None:
    """Check the most that a batch may cost.

    Raises:
        InvalidInputError: It is no amount above 0, or the cost would not be known.
    """
    if value is None:
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal(0)
    if not amount.is_finite() or amount <= 0:
        raise InvalidInputError(f"max_cost_usd is {value!r:.100}, but must be an amount above 0, such as 25")
    if not trace:
        raise InvalidInputError(
            "max_cost_usd needs trace=True, since only the trace of a job tells what it cost"
        )
    return amount


def progress_text(record: BatchRecord, *, total: int | None, running: int, traced: bool) -> str:
    """Return how far a batch is, in words."""
    of = "" if total is None else f" of {total:,}"
    parts = [f"{record.counts['completed']:,}{of} completed"]
    parts += [f"{count:,} {_words(state)}" for state, count in _others(record)]
    if running:
        parts.append(f"{running:,} running")
    if record.cost_usd:
        parts.append(f"${record.cost_usd}")
    if traced and record.jobs_without_cost:
        parts.append(f"{record.jobs_without_cost:,} without a known cost")
    return ", ".join(parts)


def deferred_status(collected: Mapping[str, Any], *, total: int | None, unfinished: int) -> dict[str, Any]:
    """Return the XCom `batch_status` of a deferred task. The lists of its sessions tell only what has ended.

    Args:
        collected: The XCom of the time when the task was deferred.
        total: How many inputs there are, if that is known.
        unfinished: How many jobs have not ended.
    """
    ended = collected.get("jobs", 0) + max(0, collected.get("running", 0) - unfinished)
    of = "" if total is None else f" of {total:,}"
    return {**collected, "progress": f"{ended:,}{of} ended, {unfinished:,} running", "running": unfinished}


def check_outcomes(record: BatchRecord, fail_on: FailOn, *, skip_cancelled: bool, flow: str) -> None:
    """Raise the exception of a batch of which too many jobs did not complete."""
    counts = Counter(record.counts)
    if skip_cancelled:
        counts.pop(OutcomeState.CANCELLED, None)
    total = sum(counts.values())
    failed = total - counts[OutcomeState.COMPLETED]
    if not failed:
        return
    match fail_on:
        case "any":
            fails = True
        case "all":
            fails = failed == total
        case share:
            fails = failed > share * total
    if fails:
        what = ", ".join(f"{count:,} {_words(state)}" for state, count in _others(record))
        raise NoukaiBatchFailedException(
            f"{what} of {total:,} jobs: {_reasons(record)} (Noukai batch of {flow})",
            counts={str(state): count for state, count in record.counts.items()},
        )


def _others(record: BatchRecord) -> list[tuple[str, int]]:
    return [
        (state.value, record.counts[state])
        for state in OutcomeState
        if state is not OutcomeState.COMPLETED and record.counts[state]
    ]


def _words(state: str) -> str:
    return state.replace("_", " ")


def _reasons(record: BatchRecord) -> str:
    """Return the most frequent reasons, each with one job."""
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for row in record.failures.values():
        by_reason.setdefault(one_line(row["error"] or row["state"], _MAX_REASON), []).append(row)
    reasons = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    named = [
        f"{reason}" + (f" ({len(rows):,} times)" if len(rows) > 1 else "")
        for reason, rows in reasons[:_NAMED_FAILURES]
    ]
    rest = len(reasons) - _NAMED_FAILURES
    return "; ".join(named) + (f"; and {rest:,} more reasons" if rest > 0 else "")
