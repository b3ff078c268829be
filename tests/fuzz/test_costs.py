"""A cost that is not known is never taken for none: in the trace of a job, in the record, and by a cap."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from noukai_core import JobFailedError, JobOutcome, JobTimeoutError, LedgerEntry, NoukaiError, OutcomeState
from noukai_core._api import endpoints
from noukai_core._api.parsing import HttpResponse
from noukai_core._engine.batch_options import BatchOptions
from noukai_core._engine.batch_totals import BatchTotals
from noukai_core._validation import FlowPath
from noukai_core.batch import SUBMITTED
from noukai_core.batch_files import OutcomePart
from noukai_core.batch_record import BatchRecord
from tests.fuzz.nonsense import fuzzed

if TYPE_CHECKING:
    from noukai_core.batch_record import Row

FLOW = FlowPath("acme", "spelling", "grade-3")
ID = str(UUID(int=7))

UNKNOWN = "unknown"
NOTHING = "nothing"


class Step(NamedTuple):
    """A step of a trace, and what it cost: an amount, `UNKNOWN`, or `NOTHING` if it says nothing of costs."""

    fields: dict[str, Any]
    cost: Decimal | str


amounts = st.decimals(0, 1000, places=6)
ended = st.sampled_from(["completed", "skipped", "cancelled", "running", "COMPLETED", None])
failed = st.sampled_from(["failed", "error", "FAILED"])
models = st.sampled_from(["gpt-5", "m", {"name": "m"}])
some_tokens = st.sampled_from([1, 12, 2**64, -1, "many", {"total": 3}, {"prompt": 1}, {"total": "many"}])
no_tokens = st.sampled_from([None, 0, {}, {"total": 0}, {"prompt": 0, "completion": 0, "total": 0}])
not_readable = st.sampled_from(
    ["abc", "", "NaN", "-0.01", -1, "Infinity", "1e999", True, [], {"usd": 1}, float("nan"), "1,5"]
)


def _fields(**known: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Return the fields of a step in either spelling, without those that are not there."""
    other = {"modelUsed": "model_used", "costUsd": "cost_usd"}
    return st.tuples(st.fixed_dictionaries(known), st.booleans()).map(
        lambda drawn: (
            {
                (other.get(name, name) if drawn[1] else name): value
                for name, value in drawn[0].items()
                if value is not None
            }
            | {"stepId": "draft"}
        )
    )


def _written(amount: Decimal) -> st.SearchStrategy[Any]:
    return st.sampled_from([str(amount), f"{amount:e}", f" {amount}"])


@st.composite
def priced(draw: st.DrawFn) -> Step:
    """A step that names what it cost."""
    amount = draw(amounts)
    fields = _fields(
        status=ended | failed,
        modelUsed=st.none() | models,
        tokens=no_tokens | some_tokens,
        costUsd=_written(amount),
    )
    return Step(draw(fields), amount)


silent = _fields(status=ended, tokens=no_tokens).map(lambda fields: Step(fields, NOTHING))
refused = _fields(status=failed, modelUsed=st.none() | models, tokens=no_tokens).map(
    lambda fields: Step(fields, Decimal(0))
)
unpriced = st.one_of(
    _fields(status=ended, modelUsed=models, tokens=no_tokens | some_tokens),
    _fields(status=ended | failed, modelUsed=st.none() | models, tokens=some_tokens),
    _fields(
        status=ended | failed,
        modelUsed=st.none() | models,
        tokens=no_tokens | some_tokens,
        costUsd=not_readable,
    ),
).map(lambda fields: Step(fields, UNKNOWN))


@fuzzed()
@given(st.lists(st.one_of(priced(), priced(), silent, refused, unpriced), max_size=5))
def test_the_cost_of_a_trace(steps: list[Step]) -> None:
    """It is the sum of its steps, unless one may have cost something that cannot be read, or none tells."""
    body = json.dumps({"flowRun": {}, "steps": [step.fields for step in steps]}).encode()
    trace = endpoints.trace(FLOW, "job-1").read(HttpResponse(200, {}, body))
    costs = [step.cost for step in steps]
    told = [cost for cost in costs if isinstance(cost, Decimal)]
    if UNKNOWN in costs or not told:
        assert trace.cost_usd is None
    else:
        assert trace.cost_usd == sum(told)


class Ending(NamedTuple):
    """How a job ended, what it cost if that is known, and whether its outcome is recorded in full."""

    state: OutcomeState
    cost_usd: Decimal | None
    timed_out: bool
    in_full: bool


@st.composite
def endings(draw: st.DrawFn) -> Ending:
    """Any outcome of an input."""
    state = draw(st.sampled_from(OutcomeState))
    cost_usd = draw(st.none() | amounts) if state.ended else None
    return Ending(state, cost_usd, draw(st.booleans()), draw(st.booleans()))


def outcome_of(index: int, ending: Ending) -> JobOutcome:
    """Return the outcome of an input."""
    job_id = f"job-{index}"
    error: NoukaiError | None = None
    if ending.state is OutcomeState.CANCELLED and ending.timed_out:
        error = JobTimeoutError("timed out", job_id=job_id, status=None)
    elif ending.state is not OutcomeState.COMPLETED:
        error = JobFailedError("no luck", job_id=job_id, status=None)
    has_job = ending.state not in (OutcomeState.REJECTED, OutcomeState.NOT_SUBMITTED)
    return JobOutcome(index, job_id if has_job else None, ending.state, error=error, cost_usd=ending.cost_usd)


async def run_attempts(attempts: list[list[Ending]], *, retried: bool) -> BatchRecord:
    """Let each attempt record its outcomes, and return the record that the next one reads."""
    log: list[Row] = []

    async def append(rows: list[Row]) -> None:
        log.extend(json.loads(json.dumps(rows)))

    index = 0
    for number, attempt in enumerate(attempts, 1):
        record = BatchRecord.load(list(log), append, retried=retried)
        part = OutcomePart(len(record.parts))
        for ending in attempt:
            outcome = outcome_of(index, ending)
            left = outcome.state in (OutcomeState.TIMED_OUT, OutcomeState.UNKNOWN)
            state = SUBMITTED if left else outcome.state.value
            entry = LedgerEntry(index=index, submission_id=ID, session_id=ID, job_id=outcome.job_id)
            if outcome.job_id is not None:
                await record.write(entry)
                await record.write(LedgerEntry.from_list([*entry.to_list()[:4], state, *entry.to_list()[5:]]))
            row = record.add(outcome, keep_output=ending.in_full, keep_failure=ending.in_full)
            if outcome.state is OutcomeState.COMPLETED and not ending.in_full:
                part.add(row)
            index += 1
        if part.rows:
            await record.begin_part(part)
            record.end_part(part)
        await record.store()
        assert_counted(record, attempts[:number])
    return BatchRecord.load(log, append, retried=retried)


def assert_counted(record: BatchRecord, attempts: list[list[Ending]]) -> None:
    """The sums are those of all jobs that have ended."""
    over = [ending for attempt in attempts for ending in attempt if ending.state.ended]
    known = [ending.cost_usd for ending in over if ending.cost_usd is not None]
    assert record.cost_usd == sum(known)
    assert record.jobs_without_cost == len(over) - len(known) == record.summary()["jobs_without_cost"]
    assert record.spent_usd == (None if len(known) < len(over) else sum(known))


@fuzzed(0.5)
@given(st.lists(st.lists(endings(), max_size=6), min_size=1, max_size=3), st.booleans())
def test_the_costs_of_a_record(attempts: list[list[Ending]], retried: bool) -> None:
    """Each attempt knows what the jobs of all before cost, and of how many of them that is not known."""
    assert_counted(asyncio.run(run_attempts(attempts, retried=retried)), attempts)


@fuzzed()
@given(st.lists(endings(), max_size=10), st.none() | amounts)
def test_a_cap(outcomes: list[Ending], spent: Decimal | None) -> None:
    """A batch with a cap is stopped exactly if what has ended cost the cap, or may have cost it."""
    options = BatchOptions(trace=True, max_cost_usd=100, spent_usd=spent)
    totals = BatchTotals(FLOW, options)
    totals.check_cost()
    for index, ending in enumerate(outcomes):
        totals.add(outcome_of(index, ending))
    over = [ending.cost_usd for ending in outcomes if ending.state.ended]
    unknown = spent is None or None in over
    beyond = (spent or 0) + sum(cost or 0 for cost in over) >= 100
    assert (totals.stopped is not None) == (unknown or beyond)
    assert totals.jobs_without_cost == over.count(None)
