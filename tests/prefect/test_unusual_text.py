"""Unusual text of flows and of inputs, in all that a real Prefect server keeps of a batch."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.serializers import PickleSerializer

from noukai_core import JobFailedError, JobOutcome, JobRequest, JobStatus, LedgerEntry, OutcomeState
from noukai_core.batch_record import BatchRecord
from noukai_prefect._batch_inputs import beginning_of
from noukai_prefect._batch_record import BatchRecordLog
from noukai_prefect._batch_table import BatchTable
from noukai_prefect._job_artifact import job_markdown
from noukai_prefect._run_context import RunContext
from tests.fuzz.nonsense import fuzzed

if TYPE_CHECKING:
    from noukai_prefect import NoukaiCredentials

pytestmark = pytest.mark.usefixtures("prefect_server")

FLOW = "acme/spelling/grade-3"

texts = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    ["\ud83d", "\ude00\ud83d", "a\0b", "\0", "k" * 1_000, "| a |\n| - |", "<b>\u202e", "\x1b[31m", "NaN"]
)
outputs = st.recursive(
    st.none() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
inputs = st.one_of(
    texts,
    st.fixed_dictionaries({"message": texts, "key": texts}),
    st.fixed_dictionaries({"parameters": st.dictionaries(texts, outputs, max_size=3)}),
    texts.map(lambda text: JobRequest(FLOW, text)),
)


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[Any, OutcomeState, Any, str]:
    """An input, how it ended, and with which output or for which reason."""
    state = draw(st.sampled_from([OutcomeState.COMPLETED, OutcomeState.FAILED, OutcomeState.REJECTED]))
    return draw(inputs), state, draw(outputs), draw(texts)


def outcome_of(index: int, state: OutcomeState, output: Any, reason: str) -> JobOutcome:
    """Return an outcome as the engine makes it."""
    job_id = f"job-{index}"
    if state is OutcomeState.COMPLETED:
        return JobOutcome(index, job_id, state, output)
    status = JobStatus(id=job_id, state="failed", error=reason)
    error = JobFailedError("no luck", job_id=job_id, status=status)
    return JobOutcome(index, job_id, state, error=error, key=reason)


async def keep(given: list[tuple[Any, OutcomeState, Any, str]], credentials: NoukaiCredentials) -> None:
    """Keep outcomes in all places on the server, and check what is there."""
    run, slot = RunContext.current(), str(uuid4())
    table = BatchTable(run, FLOW, len(given), credentials)
    log = BatchRecordLog(run, slot, FLOW, len(given), credentials)
    record = BatchRecord.load([], log.append, retried=False)
    made: list[JobOutcome] = []
    for index, (value, state, output, reason) in enumerate(given):
        table.note_input(index, beginning_of(value))
        outcome = outcome_of(index, state, output, reason)
        entry = LedgerEntry(index=index, submission_id=slot, session_id=slot, state=state)
        await record.write(entry)
        record.add(outcome, keep_output=True)
        table.note_outcome(outcome)
        made.append(outcome)
        markdown = job_markdown(FLOW, str(outcome.job_id), page=None, state=reason, reason=reason)
        async with get_client() as client:
            await client.create_artifact(
                ArtifactCreate(type="markdown", data=markdown, flow_run_id=run.flow_run_id)
            )
    await record.store()
    await table.write(final=True)

    rows = await BatchRecordLog(run, slot, FLOW, len(given), credentials).rows(None)  # type: ignore[arg-type]
    again = BatchRecord.load(rows, log.append, retried=False)
    assert again.counts == record.counts
    assert repr(again.outputs) == repr(record.outputs)
    assert again.failures == record.failures
    assert run.flow_run_id is not None
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.flow_run_id]))
    async with get_client() as client:
        kept = await client.read_artifacts(artifact_filter=wanted, limit=200)
    for artifact in kept:
        for text in (artifact.data, artifact.description, json.dumps(artifact.metadata_)):
            assert "\0" not in str(text)  # PostgreSQL refuses it
            str(text).encode()
        if artifact.id == table.artifact:
            assert [row["#"] for row in json.loads(str(artifact.data))] == sorted(
                range(len(given)), key=lambda index: (made[index].reason is None, index)
            )
    async with get_client() as client:
        for artifact in kept:
            await client.delete_artifact(artifact.id)
    pickled = PickleSerializer().loads(PickleSerializer().dumps(made))
    assert [repr(one.output) for one in pickled] == [repr(one.output) for one in made]
    assert [one.reason for one in pickled] == [one.reason for one in made]


def test_what_the_server_keeps(credentials: NoukaiCredentials) -> None:
    """The record gives back each outcome, the table has a row for each, and the result is complete."""

    @flow
    def run() -> None:
        @fuzzed(0.3)
        @given(st.lists(outcomes(), min_size=1, max_size=4))
        def check(drawn: list[tuple[Any, OutcomeState, Any, str]]) -> None:
            asyncio.run(keep(drawn, credentials))

        check()

    run()
