"""Which jobs the table of a batch shows when there are more than it has rows."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from noukai_core import JobOutcome, OutcomeState
from noukai_prefect import _batch_table
from noukai_prefect._batch_table import BatchTable
from noukai_prefect._run_context import RunContext

if TYPE_CHECKING:
    from noukai_prefect import NoukaiCredentials


@pytest.fixture
def table(credentials: NoukaiCredentials, monkeypatch: pytest.MonkeyPatch) -> BatchTable:
    """A table of two rows for a batch of four."""
    monkeypatch.setattr(_batch_table, "MAX_ROWS", 2)
    table = BatchTable(RunContext(None, None, 1, None, None), "acme/spelling/grade-3", 4, credentials)
    for index, beginning in enumerate("abcd"):
        table.note_input(index, beginning)
    return table


def end(table: BatchTable, index: int, state: OutcomeState) -> None:
    """End one of the jobs."""
    table.note_outcome(JobOutcome(index=index, key=None, state=state, job_id=f"job-{index}"))


def shown(table: BatchTable) -> list[tuple[int, str, str]]:
    """Return the index, the input and the state of each row."""
    return [(row["#"], row["input"], row["state"]) for row in json.loads(table._data())]


def test_a_failed_job_takes_the_row_of_a_completed_one(table: BatchTable) -> None:
    """People see the jobs that they have to care about, with their input, even if those came last."""
    table.note_running({1: "running", 3: "running"}, {1: "job-1", 3: "job-3"})
    end(table, 0, OutcomeState.COMPLETED)
    end(table, 2, OutcomeState.COMPLETED)
    end(table, 3, OutcomeState.FAILED)
    assert shown(table) == [(3, "d", "failed"), (1, "b", "running")]


def test_no_failed_job_gives_way_to_another(table: BatchTable) -> None:
    """A table that is full of jobs that did not complete keeps them, and counts the others."""
    for index in range(4):
        end(table, index, OutcomeState.FAILED)
    assert shown(table) == [(0, "a", "failed"), (1, "b", "failed")]
    assert table.counts() == "4 failed"


def test_costs_that_are_not_known(credentials: NoukaiCredentials) -> None:
    """The counts say how many traced jobs have no known cost, and nothing of the kind without traces."""
    for traced, said in ((True, "2 completed, 1 failed, $0.50, 2 without a known cost"), (False, None)):
        run = RunContext(None, None, 1, None, None)
        table = BatchTable(run, "acme/spelling/grade-3", 3, credentials, traced=traced)
        cost = Decimal("0.5") if traced else None
        table.note_outcome(JobOutcome(0, "job-0", OutcomeState.COMPLETED, cost_usd=cost))
        table.note_outcome(JobOutcome(1, "job-1", OutcomeState.COMPLETED))
        table.note_outcome(JobOutcome(2, "job-2", OutcomeState.FAILED))
        assert table.counts() == (said or "2 completed, 1 failed")
