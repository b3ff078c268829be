"""What a rerun reads of the record of a batch, and of inputs that can be read only once."""

from __future__ import annotations

import json
import logging
import uuid
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from noukai_core import InvalidInputError, LedgerEntry
from noukai_core.batch import new_session_of, submission_id_of
from noukai_prefect import _batch_record
from noukai_prefect._batch_inputs import BatchInputs
from noukai_prefect._batch_record import BatchRecordLog
from noukai_prefect._signing import RecordSigner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from noukai_core.batch_record import Row

FLOW = "acme/spelling/grade-3"
SCOPE, SLOT = uuid.UUID(int=7), uuid.UUID(int=8)


def entry(resubmission: int, state: str, *, session: str | None = None) -> Row:
    """A row about the first input."""
    session_id = session or new_session_of(SLOT)
    written = LedgerEntry(
        index=0,
        submission_id=submission_id_of(SLOT, 0, resubmission),
        session_id=session_id,
        job_id=f"job-{resubmission}",
        state=state,
        resubmission=resubmission,
        in_users_session=session is not None,
    )
    return {"entry": written.to_list()}


def artifact(number: int, *rows: Row, key: str = "key", data: str | None = None) -> Any:
    """A part of the record, written by a flow run of its own."""
    signer = RecordSigner(SecretStr(key), SCOPE)
    metadata = {"slot": str(SLOT), "flow": FLOW, "chunk": str(number), "size": "1"}
    signed = [[row, signer.sign({"slot": str(SLOT), "row": row})] for row in rows]
    return SimpleNamespace(
        metadata_={**metadata, "signature": signer.sign(metadata)},
        data=json.dumps(signed) if data is None else data,
        flow_run_id=uuid.UUID(int=number),
    )


@pytest.fixture
def rows_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Reads the last entry of the first input from artifacts, in the order in which Prefect lists them."""

    async def read(*listed: Any, jobs: frozenset[str] = frozenset()) -> list[tuple[int, str | None]]:
        async def own_artifacts(*_: Any) -> list[Any]:
            return list(listed)

        async def jobs_in(session_id: str) -> frozenset[str]:
            return jobs

        monkeypatch.setattr(_batch_record, "own_artifacts", own_artifacts)
        run: Any = SimpleNamespace(scope=SCOPE, logger=logging.getLogger)
        credentials: Any = SimpleNamespace(api_key=SecretStr("key"), saved_as=None)
        flow: Any = SimpleNamespace(path=FLOW, jobs_in=jobs_in)
        rows = await BatchRecordLog(run, str(SLOT), FLOW, 1, credentials).rows(flow)
        found = [LedgerEntry.from_list(row["entry"]) for row in rows]
        return [(one.resubmission, one.job_id) for one in found]

    return read


@pytest.mark.parametrize("order", [1, -1])
async def test_attempts_of_a_subflow_are_read_in_their_order(rows_of: Callable[..., Any], order: int) -> None:
    """Each attempt of a subflow is a flow run, which Prefect lists in any order; the last one counts."""
    listed = [artifact(1, entry(0, "failed")), artifact(2, entry(1, "submitted"))]
    assert (await rows_of(*listed[::order]))[-1] == (1, "job-1")


async def test_a_verified_row_with_a_session_of_the_users_own(rows_of: Callable[..., Any]) -> None:
    """The record of a job in a session that the user chose is read as any other."""
    assert await rows_of(artifact(1, entry(0, "submitted", session=str(uuid.uuid4())))) == [(0, "job-0")]


async def test_a_later_row_that_is_not_verified(rows_of: Callable[..., Any]) -> None:
    """A submission that only a row with another key's signature names is not forgotten."""
    listed = [artifact(1, entry(0, "failed")), artifact(2, entry(1, "submitted"), key="another")]
    assert await rows_of(*listed, jobs=frozenset({"job-1"})) == [(0, "job-0"), (1, "job-1")]


async def test_a_record_that_is_nested_too_deeply(rows_of: Callable[..., Any]) -> None:
    """An artifact that cannot be read costs no other."""
    assert await rows_of(artifact(1, data="[" * 200_000), artifact(2, entry(0, "failed"))) == [(0, "job-0")]


def generator() -> Iterator[str]:
    yield from ("a", "b", "c")


@pytest.mark.parametrize(
    "given", [generator(), map(str.lower, "ABC"), iter(["a", "b", "c"])], ids=["generator", "map", "iterator"]
)
async def test_a_generator_is_not_read_again(given: Iterator[str]) -> None:
    """What a first attempt left of an iterator never takes the places of the inputs that it read."""
    first = aiter(BatchInputs(FLOW, given, "production", trace=False))
    assert await anext(first) == "a"
    with pytest.raises(InvalidInputError, match="was read before"):
        await anext(aiter(BatchInputs(FLOW, given, "production", trace=False)))
    await first.aclose()  # type: ignore[attr-defined]
