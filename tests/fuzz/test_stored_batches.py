"""What is stored of a batch, in a folder that others may write to as well, is not believed."""

from __future__ import annotations

import copy
import hashlib
import json
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from noukai_core import OutcomeState
from noukai_core.batch_files import is_part
from noukai_core.batch_record import BatchRecord
from tests.fuzz.nonsense import fuzzed

BATCH = str(UUID(int=7))
PART = "part-00001-0123abcd.jsonl"
CONTENT = b'{"index": 0}'
DIGEST = hashlib.sha256(CONTENT).hexdigest()
ENTRY = [0, BATCH, BATCH, "job-1", "completed", 0, "2026-01-01T00:00:00+00:00", True, False, ""]
OUTCOME = {
    "index": 0,
    "key": None,
    "state": "completed",
    "output": "good",
    "error": None,
    "job_id": "job-1",
    "tokens": 3,
    "cost_usd": "0.25",
    "seconds": 1.5,
}
ROWS: tuple[dict[str, Any], ...] = (
    {"entry": ENTRY, "outcome": OUTCOME},
    {"entry": ENTRY, "outcome": {**OUTCOME, "state": "failed", "error": "no luck"}},
    {"spent": {"job_id": "job-1", "tokens": 3, "cost_usd": "0.25"}},
    {"spent": {"job_id": "job-2", "tokens": None, "cost_usd": None}},
    {"part": {"name": PART, "digest": DIGEST, "rows": [[0, 3, "0.25"], [1, None, None]]}},
    {"written": PART},
    {"retried": True},
)
ODD = (
    *("NaN", "-1", "Infinity", "1e999999", "1e-999999999", "x", "", "../x", "\ud800"),
    *(None, True, False, -1, 0, 1, 1.5, 2**53 + 1, 10**30, float("nan"), float("inf"), float("-inf")),
    *([], {}, [ENTRY], ["x"], {"part": 1}, [[0, 3, "1"]]),
)


@st.composite
def spoilt_rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row of which up to three values were replaced, at any depth."""
    row: Any = copy.deepcopy(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(row))
        if places:
            container, name = draw(st.sampled_from(places))
            container[name] = copy.deepcopy(draw(st.sampled_from(ODD)))
    return dict(row)


def _places(value: Any) -> Any:
    names = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for name in names:
        yield value, name
        yield from _places(value[name])


async def forget(_: Any) -> None:
    """Append to no log."""


def assert_sound(record: BatchRecord) -> None:
    """The sums are such as can be added up, compared and written, and what is kept has an outcome."""
    assert record.cost_usd.is_finite()
    assert Decimal(0) <= record.cost_usd < Decimal("1e100")
    assert isinstance(record.jobs_without_cost, int)
    assert isinstance(record.tokens, int)
    assert record.tokens >= 0
    assert set(record.counts) <= set(OutcomeState)
    assert all(type(count) is int and count >= 0 for count in record.counts.values())
    indexes = [*record.outputs, *record.failures, *record.begun_parts, *record.read()]
    assert all(type(index) in (int, str) for index in indexes)
    failures = [row | {"output": None} for row in record.failures.values()]
    json.dumps([record.summary(), *failures], allow_nan=False)


@fuzzed()
@given(rows=st.lists(spoilt_rows(), max_size=4), retried=st.booleans())
def test_rows_of_the_record(rows: list[dict[str, Any]], *, retried: bool) -> None:
    """Whatever stands in the rows of a record, it is read, and its sums are amounts."""
    assert_sound(BatchRecord.load(rows, forget, retried=retried))


@fuzzed()
@given(spoilt=spoilt_rows())
def test_a_kept_input_has_an_outcome(spoilt: dict[str, Any]) -> None:
    """A row whose outcome cannot be read does not make its input count as done either."""
    record = BatchRecord.load([spoilt], forget, retried=False)
    kept = {index for index, entry in record.read().items() if entry.kept}
    assert kept <= {*record.outputs, *record.failures}


@fuzzed()
@given(rows=st.lists(spoilt_rows(), max_size=4))
def test_parts_that_were_begun(rows: list[dict[str, Any]]) -> None:
    """A part that is adopted is in the output folder, and counts each input once."""
    record = BatchRecord.load([*rows, *rows], forget, retried=False)
    for name in list(record.begun_parts):
        assert is_part(name)
        record.adopt_part(name, CONTENT)
    assert_sound(record)
    assert len(record.parts) == len(set(record.parts))
    assert record.counts["completed"] <= len(record.read())
