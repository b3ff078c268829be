"""Many jobs with one call: one outcome for each input, with both clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from decimal import Decimal
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from noukai_core import (
    APIError,
    AsyncNoukai,
    ConnectionPoolTimeoutError,
    InvalidInputError,
    JobFailedError,
    JobOutcome,
    JobRequest,
    JobStatus,
    LedgerEntry,
    MemoryLedger,
    NotSubmittedError,
    Noukai,
    NoukaiError,
    OutcomeState,
    RateLimitError,
    TransientError,
)
from noukai_core._api.endpoints import Execution
from noukai_core._engine.batch import Batch
from noukai_core._engine.batch_options import BatchOptions
from noukai_core._engine.effects import Given, Send, Sleep
from noukai_core._engine.lanes import OWN_PAUSE, OWN_SHARE, Lane, Trust
from noukai_core._engine.rate_limit import PollRateLimiter, shared_rate_limiter
from noukai_core._engine.wait import Poller
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath
from noukai_core.batch import SUBMITTING, new_session_of
from noukai_core.batch_record import BatchRecord
from tests.table import Table

if TYPE_CHECKING:
    from noukai_core.batch_record import Row
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"
BATCH = "3b241101-e2bb-4255-8caf-4136c566a962"
STEP = {"tokens": {"total": 10}, "costUsd": "0.25"}


def run(driver: str, emulator: Emulator, inputs: Any, **options: Any) -> list[JobOutcome]:
    """Run a batch with one of the clients, and return its outcomes."""
    settings: Any = {
        "base_url": emulator.base_url,
        "recovery_timeout": options.pop("recovery_timeout", 60.0),
    }
    key = f"nk_test_{uuid4().hex}"  # clients with the same key share a rate limit
    if driver == "sync":
        with Noukai(key, **settings) as client:
            return list(client.flow(FLOW).jobs(inputs, **options))

    async def outcomes() -> list[JobOutcome]:
        async with AsyncNoukai(key, **settings) as client:
            return [outcome async for outcome in client.flow(FLOW).jobs(inputs, **options)]

    return asyncio.run(outcomes())


def scripted(message: str, **script: Any) -> dict[str, Any]:
    """Return an input with a script for its job."""
    return {"message": message, "key": message, "parameters": {"_emulator": script}}


def test_one_outcome_for_each_input(driver: str, emulator: Emulator) -> None:
    """Each input has one outcome, with its key, state, output or error, whatever came of the others."""
    inputs = [
        scripted("good"),
        scripted("bad", outcome="failed", error="no luck"),
        scripted("gone", outcome="cancelled"),
        {"massage": "typo"},
        7,
        JobRequest(FLOW, "mine", key="k"),
    ]
    outcomes = sorted(run(driver, emulator, inputs), key=lambda outcome: outcome.index)
    assert [(outcome.index, outcome.key, outcome.state) for outcome in outcomes] == [
        (0, "good", "completed"),
        (1, "bad", "failed"),
        (2, "gone", "cancelled"),
        (3, None, "rejected"),
        (4, None, "rejected"),
        (5, "k", "completed"),
    ]
    assert outcomes[0].output["message"] == "good"
    assert "no luck" in str(outcomes[1].error)
    assert "inputs[3] has massage" in str(outcomes[3].error)
    assert "inputs[4] is of type int" in str(outcomes[4].error)
    assert len(emulator.control.jobs()) == 4


def test_in_order(driver: str, emulator: Emulator) -> None:
    """With `in_order` the outcomes come in the order of the inputs, even where a later one ends first."""
    inputs = [scripted("slow", after_seconds=1.5), *(f"m{number}" for number in range(30))]
    assert [outcome.index for outcome in run(driver, emulator, inputs, in_order=True)] == list(range(31))


def test_inputs_are_read_as_jobs_end(driver: str, emulator: Emulator) -> None:
    """No more inputs are read than jobs run and outcomes wait to be taken."""
    emulator.control.script("grade-3", after_seconds=0.2)
    read = 0

    def inputs() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"m{read}"

    if driver == "sync":
        with Noukai("nk_test_key", base_url=emulator.base_url) as client:
            batch = client.flow(FLOW).jobs(inputs(), max_concurrency=5)
            for _ in range(7):
                next(batch)
            batch.close()
    else:

        async def take_some() -> None:
            async with (
                AsyncNoukai("nk_test_key", base_url=emulator.base_url) as client,
                client.flow(FLOW).jobs(inputs(), max_concurrency=5) as batch,
            ):
                for _ in range(7):
                    await anext(batch)

        asyncio.run(take_some())
    assert 7 <= read <= 7 + 2 * 5


def test_async_inputs(emulator: Emulator) -> None:
    """The async client reads an async iterable."""

    async def inputs() -> AsyncIterator[str]:
        for number in range(3):
            yield f"m{number}"

    assert len(run("async", emulator, inputs())) == 3


def test_an_error_of_the_inputs_ends_the_batch(driver: str, emulator: Emulator) -> None:
    """An error of the iterable is raised, and nothing is submitted after it."""

    def inputs() -> Iterator[str]:
        yield "good"
        raise ValueError("line 2 is not JSON")

    with pytest.raises(ValueError, match="line 2"):
        run(driver, emulator, inputs())
    assert len(emulator.control.jobs()) <= 1


class Unreadable(dict[str, Any]):
    """An object of a user's own that raises when it is read."""

    def keys(self) -> Any:
        raise RuntimeError("hunter2")

    items = __iter__ = keys  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("bad", "reported"),
    [
        (Unreadable(message="x"), "inputs[1] cannot be read: it raised RuntimeError"),
        (
            {"message": "x", "parameters": Unreadable(x=1)},
            "parameters cannot be read: it raised RuntimeError",
        ),
        ({"message": "x", "key": 7}, "inputs[1]: key is 7 (int), but must be a string"),
        (JobRequest(FLOW, "x", key="\ud800"), "inputs[1]: key holds half of a surrogate pair"),
    ],
)
def test_an_input_that_cannot_be_read(driver: str, emulator: Emulator, bad: Any, reported: str) -> None:
    """An input that raises, or a key that no file can hold, is that input's outcome and ends no batch."""
    outcomes = sorted(run(driver, emulator, ["a", bad, "b"]), key=lambda outcome: outcome.index)
    assert [outcome.state.value for outcome in outcomes] == ["completed", "rejected", "completed"]
    assert reported in str(outcomes[1].error)
    assert "hunter2" not in str(outcomes[1].error)


def test_inputs_that_raise_a_cancellation(emulator: Emulator) -> None:
    """A cancellation that the inputs raise themselves ends the batch, as it would end a loop over them."""

    async def inputs() -> AsyncIterator[str]:
        yield "a"
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run("async", emulator, inputs())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": "one message"}, "inputs is a str"),
        ({"inputs": {"message": "x"}}, "inputs is a dict"),
        ({"inputs": Table()}, "inputs is a Table"),
        ({"inputs": 3}, "inputs is a int"),
        ({"max_concurrency": 0}, "max_concurrency is 0"),
        ({"stop_after_failures": 2.0}, "stop_after_failures is 2.0"),
        ({"stop_after_failures": 0}, "stop_after_failures is 0"),
        ({"max_cost_usd": "much", "trace": True}, "max_cost_usd is 'much'"),
        ({"max_cost_usd": -1, "trace": True}, "max_cost_usd is -1"),
        ({"max_cost_usd": 1}, "max_cost_usd needs trace=True"),
        ({"max_cost_usd": 1, "spent_usd": "much", "trace": True}, "spent_usd is 'much'"),
        ({"spent_usd": -0.5}, "spent_usd is -0.5"),
        ({"spent_usd": True}, "spent_usd is True"),
        ({"spent_usd": float("nan")}, "spent_usd is nan"),
        ({"timeout": 0}, "timeout is 0"),
        ({"version": "latest"}, "version is 'latest'"),
        ({"batch_id": "mine"}, "batch_id is 'mine'"),
        ({"in_order": "yes"}, "in_order is 'yes'"),
        ({"trace": 1}, "trace is 1"),
        ({"detach": 0}, "detach is 0"),
        ({"cancel_on_timeout": 1}, "cancel_on_timeout is 1"),
        ({"in_order": True, "detach": True}, "in_order and detach exclude each other"),
    ],
)
def test_bad_arguments(driver: str, emulator: Emulator, arguments: dict[str, Any], message: str) -> None:
    """A wrong argument is refused by name, and nothing is sent."""
    with pytest.raises(InvalidInputError, match=message):
        run(driver, emulator, **{"inputs": ["m"], **arguments})
    assert emulator.control.requests(kind="submit") == []


def test_cost(driver: str, emulator: Emulator) -> None:
    """Once what has ended costs as much as `max_cost_usd`, the rest is not submitted, and says why."""
    inputs = [scripted(f"m{number}", steps=[STEP], outcome="failed") for number in range(20)]
    outcomes = run(driver, emulator, inputs, trace=True, max_cost_usd="1", max_concurrency=2)
    ran = [outcome for outcome in outcomes if outcome.job_id]
    assert 4 <= len(ran) <= 6
    assert {outcome.cost_usd for outcome in ran} == {Decimal("0.25")}
    rest = [outcome for outcome in outcomes if not outcome.job_id]
    assert len(rest) == 20 - len(ran)
    assert {outcome.state.value for outcome in rest} == {"not_submitted"}
    assert all(isinstance(outcome.error, NotSubmittedError) for outcome in rest)
    assert "max_cost_usd $1" in str(rest[0].error)


@pytest.mark.parametrize("spent", [1.5, "1.5", 2])
def test_what_was_spent_is_any_number(driver: str, emulator: Emulator, spent: Any) -> None:
    """What earlier runs cost is an amount in each form that the cap takes, and counts towards it."""
    (outcome,) = run(driver, emulator, ["m"], trace=True, max_cost_usd=1.5, spent_usd=spent)
    assert (outcome.job_id, outcome.state.value) == (None, "not_submitted")


@pytest.mark.parametrize("sent", [False, True])
def test_an_interrupted_submission_after_the_cap(driver: str, emulator: Emulator, sent: bool) -> None:
    """Beyond the cap, an earlier run's submission is attached to if it has a job, and otherwise not sent."""
    entry = LedgerEntry(index=0, submission_id=BATCH, session_id=str(uuid4()))
    if sent:
        with Noukai("nk_test_key", base_url=emulator.base_url) as client:
            client.flow(FLOW).job(message="a", session_id=entry.session_id, trace=True)
    ledger = MemoryLedger()
    ledger.write(entry)
    options: Any = {"trace": True, "max_cost_usd": 1, "spent_usd": Decimal(2), "recovery_timeout": 0.5}
    outcomes = run(driver, emulator, ["a", "b"], ledger=ledger, batch_id=BATCH, **options)
    states = [outcome.state.value for outcome in sorted(outcomes, key=lambda outcome: outcome.index)]
    assert states == ["completed" if sent else "not_submitted", "not_submitted"]
    assert len(emulator.control.jobs()) == int(sent)
    assert not ledger.entries[0].unfinished


def test_cost_without_readable_traces(driver: str, emulator: Emulator) -> None:
    """With a budget, one job at most is submitted where traces cannot be read."""
    emulator.control.fault("status", on="trace", status=403, times=None)
    outcomes = run(driver, emulator, ["a", "b", "c"], trace=True, max_cost_usd=1)
    assert sorted(outcome.state.value for outcome in outcomes) == [
        "completed",
        "not_submitted",
        "not_submitted",
    ]
    assert "traces cannot be read" in str(next(outcome for outcome in outcomes if outcome.error).error)
    assert len(emulator.control.jobs()) == 1


def test_a_cost_that_is_not_known(driver: str, emulator: Emulator) -> None:
    """A job whose trace tells only a part of its cost stops a batch with a budget, and counts in none."""
    steps = [STEP, {"costUsd": None}]
    inputs = [scripted("a", steps=[STEP]), scripted("b", steps=steps), *(["c"] * 5)]
    outcomes = run(driver, emulator, inputs, trace=True, max_cost_usd=100, max_concurrency=1, in_order=True)
    assert [outcome.cost_usd for outcome in outcomes[:2]] == [Decimal("0.25"), None]
    assert [outcome.lacks_cost for outcome in outcomes] == [False, True] + [False] * 5
    assert {outcome.state.value for outcome in outcomes[3:]} == {"not_submitted"}
    assert f"it is not known what job {outcomes[1].job_id} cost" in str(outcomes[-1].error)


def test_a_failed_request_to_a_provider_costs_nothing(driver: str, emulator: Emulator) -> None:
    """A job whose step was refused before it used a token does not stop a batch with a budget."""
    refused = {"status": "failed", "tokens": None, "costUsd": None, "error": "HTTP 529"}
    inputs = [scripted("a", steps=[refused], outcome="failed"), scripted("b", steps=[STEP])]
    outcomes = run(driver, emulator, inputs, trace=True, max_cost_usd=100, max_concurrency=1, in_order=True)
    assert [(outcome.state.value, outcome.cost_usd) for outcome in outcomes] == [
        ("failed", Decimal(0)),
        ("completed", Decimal("0.25")),
    ]


def test_earlier_jobs_whose_cost_is_not_known(driver: str, emulator: Emulator) -> None:
    """A rerun that cannot know what was spent submits nothing under a budget, and does so without one."""
    unknown: dict[str, Any] = {"trace": True, "spent_usd": None}
    (outcome,) = run(driver, emulator, ["a"], max_cost_usd=100, **unknown)
    assert outcome.state == "not_submitted"
    assert "what all jobs of earlier runs cost" in str(outcome.error)
    (outcome,) = run(driver, emulator, ["a"], **unknown)
    assert outcome.state == "completed"


@pytest.mark.parametrize("limit", [3, 0.1])
def test_stop_after_failures(driver: str, emulator: Emulator, limit: float) -> None:
    """Once too many jobs have failed, the rest is not submitted."""
    emulator.control.script("grade-3", outcome="failed")
    outcomes = run(driver, emulator, ["m"] * 60, stop_after_failures=limit, max_concurrency=3)
    failed = sum(outcome.state == "failed" for outcome in outcomes)
    at_least = 3 if limit == 3 else 20
    assert at_least <= failed <= at_least + 5
    assert sum(outcome.state == "not_submitted" for outcome in outcomes) == 60 - failed


def test_a_rejection_that_concerns_every_job(driver: str, emulator: Emulator) -> None:
    """A batch whose key is not accepted does not send each of its inputs."""
    emulator.control.fault("status", on="submit", status=402, times=None)
    outcomes = run(driver, emulator, ["m"] * 50)
    assert len(outcomes) == 50
    assert {outcome.state.value for outcome in outcomes} == {"rejected", "not_submitted"}
    assert len(emulator.control.requests()) < 20


@pytest.mark.parametrize("status", [400, 404])
def test_a_version_that_only_one_input_has(driver: str, emulator: Emulator, status: int) -> None:
    """A version of its own that the server rejects ends that input, and the others run."""
    emulator.control.fault("status", on="submit", status=status, code="INVALID_VERSION", times=1)
    inputs = [JobRequest(FLOW, "a", version=7), "b", "c"]
    outcomes = run(driver, emulator, inputs, max_concurrency=1, in_order=True)
    assert [outcome.state.value for outcome in outcomes] == ["rejected", "completed", "completed"]


@pytest.mark.parametrize("status", [400, 404])
def test_a_version_that_every_input_has(driver: str, emulator: Emulator, status: int) -> None:
    """A version of the batch that the server rejects is not asked for again with each input."""
    emulator.control.fault("status", on="submit", status=status, code="INVALID_VERSION", times=None)
    outcomes = run(driver, emulator, ["m"] * 50, version=7)
    assert {outcome.state.value for outcome in outcomes} == {"rejected", "not_submitted"}
    assert len(emulator.control.requests()) < 20


def test_timeout(driver: str, emulator: Emulator) -> None:
    """A job that does not end in time is left running, or cancelled with `cancel_on_timeout`."""
    emulator.control.script("grade-3", outcome="never")
    (left,) = run(driver, emulator, ["m"], timeout=0.5)
    (cancelled,) = run(driver, emulator, ["m"], timeout=0.5, cancel_on_timeout=True)
    assert (left.state, cancelled.state) == ("timed_out", "cancelled")
    assert [job["state"] for job in emulator.control.jobs()] in (
        ["cancelled", "running"],
        ["running", "cancelled"],
    )


def test_timeout_that_somebody_decides_about(driver: str, emulator: Emulator) -> None:
    """A function as `cancel_on_timeout` decides about each job at the moment at which that has timed out."""
    emulator.control.script("grade-3", outcome="never")
    answers = iter([False, True])

    async def answer() -> bool:
        return next(answers)

    asked: Any = answer if driver == "async" else lambda: next(answers)
    outcomes = run(driver, emulator, ["m", "m"], timeout=0.5, cancel_on_timeout=asked)
    assert sorted(outcome.state for outcome in outcomes) == ["cancelled", "timed_out"]
    assert sorted(job["state"] for job in emulator.control.jobs()) == ["cancelled", "running"]


def test_rerun(driver: str, emulator: Emulator) -> None:
    """A rerun takes what has completed, attaches to what runs, and submits what failed or is missing."""
    ledger = MemoryLedger()
    emulator.control.script("grade-3", outcome="failed")
    run(driver, emulator, ["a"], ledger=ledger, batch_id=BATCH)
    emulator.control.script("grade-3", outcome="completed")
    inputs = ["a", "b", "c", "d"]
    run(driver, emulator, inputs[:2], ledger=ledger, batch_id=BATCH)
    done = ledger.entries[1].job_id
    emulator.control.script("grade-3", outcome="completed", after_seconds=1)
    run(driver, emulator, inputs[:3], ledger=ledger, batch_id=BATCH, detach=True)
    running = ledger.entries[2]
    assert running.state == "submitted"
    ledger.write(LedgerEntry(**{**_fields(ledger.entries[0]), "kept": True}))
    outcomes = run(driver, emulator, inputs, ledger=ledger, batch_id=BATCH)
    assert {outcome.index: outcome.job_id for outcome in outcomes if outcome.index < 3} == {
        1: done,
        2: running.job_id,
    }
    assert {outcome.state.value for outcome in outcomes} == {"completed"}
    assert len(outcomes) == 3
    assert len(emulator.control.jobs()) == 5


@pytest.mark.parametrize("lost", [False, True], ids=["a job that runs", "a response that was lost"])
@pytest.mark.parametrize("invalid", ["", {"massage": "typo"}], ids=["empty", "mistyped"])
def test_a_rerun_whose_input_is_invalid(driver: str, emulator: Emulator, lost: bool, invalid: Any) -> None:
    """The job of an earlier run stays that of its input, even if a rerun has a wrong input."""
    ledger = MemoryLedger()
    emulator.control.script("grade-3", after_seconds=1)
    run(driver, emulator, ["a"], ledger=ledger, batch_id=BATCH, detach=True)
    (job,) = emulator.control.jobs()
    if lost:
        ledger.write(replace(ledger.entries[0], job_id=None, state=SUBMITTING))
    first = ledger.entries[0]
    (outcome,) = run(driver, emulator, [invalid], ledger=ledger, batch_id=BATCH)
    if invalid or lost:  # a job whose id is known needs no valid input
        assert (outcome.state, outcome.job_id) == ("unknown", first.job_id)
        assert ledger.entries[0] == first
    (outcome,) = run(driver, emulator, ["a"], ledger=ledger, batch_id=BATCH)
    assert (outcome.state, outcome.job_id) == ("completed", job["id"])
    assert len(emulator.control.jobs()) == 1


def test_jobs_of_a_rerun_that_is_invalid_are_unfinished(emulator: Emulator) -> None:
    """Jobs that run are named and can be cancelled, although the rerun has no valid request for them."""
    ledger = MemoryLedger()
    emulator.control.script("grade-3", outcome="never")
    run("sync", emulator, ["a", "b"], ledger=ledger, batch_id=BATCH, detach=True)
    with Noukai("nk_test_key", base_url=emulator.base_url) as client:
        batch = client.flow(FLOW).jobs(["a", "b"], ledger=ledger, batch_id=BATCH, max_cost_usd=5)
        assert [outcome.state for outcome in batch] == ["unknown", "unknown"]
        assert set(batch.unfinished) == {0, 1}
        assert len(batch.cancel("test")) == 2
    assert {job["state"] for job in emulator.control.jobs()} == {"cancelled"}


def test_a_detached_rerun_polls_only_what_has_ended(driver: str, emulator: Emulator) -> None:
    """A detached batch reads the list of a session, and then polls only those of its jobs that have ended."""
    emulator.control.script("grade-3", outcome="never")
    ledger, inputs = MemoryLedger(), [f"m{number}" for number in range(10)]
    detached: dict[str, Any] = {"ledger": ledger, "batch_id": BATCH, "detach": True}
    assert run(driver, emulator, inputs, **detached) == []
    ended = {ledger.entries[index].job_id for index in (2, 5, 6)}
    for job_id in ended:
        emulator.control.finish(str(job_id))
    assert {outcome.job_id for outcome in run(driver, emulator, inputs, **detached)} == ended
    counts = emulator.control.counts()
    sessions = {entry.session_id for entry in ledger.entries.values()}
    assert (counts["poll"], counts["submit"]) == (3, 10)
    assert counts["session"] >= len(sessions)


def test_a_detached_rerun_without_a_list_polls_each_job(driver: str, emulator: Emulator) -> None:
    """Where the list cannot be read, a detached batch polls each job of the earlier run."""
    emulator.control.script("grade-3", outcome="never")
    ledger, inputs = MemoryLedger(), [f"m{number}" for number in range(5)]
    detached: dict[str, Any] = {"ledger": ledger, "batch_id": BATCH, "detach": True}
    run(driver, emulator, inputs, **detached)
    for entry in ledger.entries.values():
        emulator.control.finish(str(entry.job_id))
    emulator.control.fault("status", on="session", times=None, status=403)
    assert len(run(driver, emulator, inputs, **detached)) == 5
    assert emulator.control.counts()["poll"] == 5


def _fields(entry: LedgerEntry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in entry.__slots__}


def test_an_entry_survives_json() -> None:
    """A ledger's entry can be stored as a list, and what is no entry is refused."""
    ledger = MemoryLedger()
    entry = LedgerEntry(index=3, submission_id=BATCH, session_id=BATCH, job_id="job_1", state="submitted")
    ledger.write(entry)
    assert LedgerEntry.from_list(entry.to_list()) == entry == ledger.read()[3]
    with pytest.raises(ValueError, match="no entry"):
        LedgerEntry.from_list([1, 2])


@pytest.mark.parametrize("cancel_on_close", [False, True])
def test_close(driver: str, emulator: Emulator, cancel_on_close: bool) -> None:
    """What runs when a batch is closed is left running, or cancelled if that was asked for."""
    inputs = [scripted("quick"), *(scripted("endless", outcome="never") for _ in range(5))]
    options: Any = {"cancel_on_close": cancel_on_close, "in_order": True}
    if driver == "sync":
        with Noukai("nk_test_key", base_url=emulator.base_url) as client:
            batch = client.flow(FLOW).jobs(inputs, **options)
            assert next(batch).index == 0
            batch.close()
            assert list(batch) == []
    else:

        async def begin_and_close() -> None:
            async with AsyncNoukai("nk_test_key", base_url=emulator.base_url) as client:
                async with client.flow(FLOW).jobs(inputs, **options) as batch:
                    assert (await anext(batch)).index == 0
                assert [outcome async for outcome in batch] == []

        asyncio.run(begin_and_close())
    states = {job["state"] for job in emulator.control.jobs() if job["message"] == "endless"}
    assert states == {"cancelled"} if cancel_on_close else "cancelled" not in states


@pytest.mark.parametrize("begun", [True, False])
def test_cancel_a_batch(emulator: Emulator, begun: bool) -> None:
    """A cancel reaches every job of a batch, even those that only an earlier run knows."""
    ledger = MemoryLedger()
    options: Any = {"ledger": ledger, "batch_id": str(uuid4())}
    inputs = [scripted("quick"), *(scripted("endless", outcome="never") for _ in range(3))]
    with Noukai("nk_test_key", base_url=emulator.base_url) as client:
        batch = client.flow(FLOW).jobs(inputs, **options)
        assert next(batch).state is OutcomeState.COMPLETED
        assert batch.counts["completed"] == 1
        assert batch.counts["running"] == sum(entry.unfinished for entry in ledger.read().values())
        if not begun:
            batch.close()
            batch.close()
            batch = client.flow(FLOW).jobs((), **options)
        cancelled = batch.cancel("nobody wants it any more")
    running = [job["id"] for job in emulator.control.jobs() if job["message"] == "endless"]
    assert sorted(outcome.job_id for outcome in cancelled) == sorted(running)
    assert {emulator.control.job(job_id)["state"] for job_id in running} == {"cancelled"}


class AsyncLedger(MemoryLedger):
    """A ledger for `AsyncNoukai`."""

    def __init__(self, *asynchronous: str) -> None:
        super().__init__()
        self.asynchronous = asynchronous

    def read(self) -> Any:
        return self._later() if "read" in self.asynchronous else super().read()

    def write(self, entry: LedgerEntry) -> Any:
        return self._later() if "write" in self.asynchronous else super().write(entry)

    async def _later(self) -> dict[int, LedgerEntry]:
        return {}


@pytest.mark.parametrize("operation", ["read", "write"])
@pytest.mark.filterwarnings("ignore:coroutine 'AsyncLedger._later' was never awaited:RuntimeWarning")
def test_an_async_ledger_of_a_blocking_client(emulator: Emulator, operation: str) -> None:
    """A ledger that a blocking client cannot use is an error before anything is submitted."""
    with (
        Noukai("nk_test_key", base_url=emulator.base_url) as client,
        pytest.raises(InvalidInputError, match="the ledger is async, but the client is not"),
    ):
        list(client.flow(FLOW).jobs(["a"], ledger=AsyncLedger(operation)))
    assert emulator.control.counts()["submit"] == 0


def test_a_session_tells_the_states_of_many_jobs(driver: str, emulator: Emulator) -> None:
    """Jobs that run are polled by their sessions: each itself about once, to fetch its result."""
    emulator.control.script("grade-3", after_seconds=6)
    outcomes = run(driver, emulator, (f"m{number}" for number in range(150)))
    assert {outcome.state.value for outcome in outcomes} == {"completed"}
    polls = sum(job["polls"] for job in emulator.control.jobs())
    assert polls <= 2 * 150
    assert len({job["session_id"] for job in emulator.control.jobs()}) < 20


def test_a_list_that_shrinks() -> None:
    """A job that a list no longer has is polled itself at once, though lists have told of it before."""
    settings = ClientOptions(api_key="nk_test", base_url="http://127.0.0.1:1")
    limiter = shared_rate_limiter(settings.base_url, settings.api_key, settings.max_polls_per_second)
    lane = Lane(BATCH, Trust(FLOW, settings), settings, limiter, monotonic)
    lane.watching = True
    jobs = [lane.add(f"job-{number}", 0.0) for number in range(4)]
    polled: list[str] = []
    for job in jobs:
        job.wake.add(lambda job=job: polled.append(job.job_id))
    listed = tuple(Execution(job.job_id, None, "job", None, "running") for job in jobs)
    lane._note(listed, 0.0)
    assert all(lane.tells_of(job) for job in jobs)
    lane._note(listed[:1], 1.0)
    assert [lane.tells_of(job) for job in jobs] == [True, False, False, False]
    assert polled == ["job-1", "job-2", "job-3"]
    lane._note(listed, 2.0)
    assert all(lane.tells_of(job) for job in jobs)


@pytest.mark.parametrize(
    ("error", "polls"),
    [
        (RateLimitError("HTTP 429", status_code=429), []),
        (ConnectionPoolTimeoutError("no connection became free"), []),
        (TransientError("HTTP 503", status_code=503), ["job-0", "job-1"]),
    ],
    ids=["429", "no connection", "503"],
)
def test_a_list_that_fails_for_long(error: APIError, polls: list[str]) -> None:
    """Each job is polled instead of a list that fails, but not while there are too many requests."""
    settings = ClientOptions(api_key="nk_test", base_url="http://127.0.0.1:1")
    limiter = PollRateLimiter(settings.max_polls_per_second)
    lane = Lane(BATCH, Trust(FLOW, settings), settings, limiter, monotonic)
    lane.watching = True
    polled: list[str] = []
    for job in [lane.add(f"job-{number}", 0.0) for number in range(2)]:
        job.wake.add(lambda job=job: polled.append(job.job_id))
    for _ in range(10):
        assert [type(effect) for effect in lane._after_error(error)] == [Sleep]
    assert polled == polls


def test_a_list_whose_server_asks_for_a_day() -> None:
    """A long `Retry-After` does not keep a batch from its lists for longer than the retry window."""
    settings = ClientOptions(api_key="nk_test", base_url="http://127.0.0.1:1")
    limiter = PollRateLimiter(settings.max_polls_per_second)
    lane = Lane(BATCH, Trust(FLOW, settings), settings, limiter, monotonic)
    error = RateLimitError("HTTP 429", status_code=429, retry_after=86_400)
    pauses = [effect.seconds for effect in lane._after_error(error) if isinstance(effect, Sleep)]
    assert pauses == [settings.retry_timeout]


def test_the_rare_polls_of_listed_jobs_stay_rare_when_a_batch_grows() -> None:
    """A job that lists tell of is polled later than it would have been when there were few such jobs."""
    now = 0.0
    settings = ClientOptions(api_key="nk_test", base_url="http://127.0.0.1:1")
    limiter = PollRateLimiter(settings.max_polls_per_second)
    trust = Trust(FLOW, settings)
    lane = Lane(BATCH, trust, settings, limiter, lambda: now)
    lane.watching = True
    watched, *_ = [lane.add(f"job-{number}", now) for number in range(4)]
    path = FlowPath(*FLOW.split("/"))
    poller = Poller(path, "job-0", settings, limiter, lambda: now, watcher=watched)
    effects = poller.effects()
    slept = next(effects)
    assert isinstance(slept, Sleep)
    assert OWN_PAUSE * 0.9 <= slept.seconds <= OWN_PAUSE * 1.1
    trust.unfinished = 5000
    now += slept.seconds
    slept = next(effects)
    rare = trust.unfinished / (settings.max_polls_per_second * OWN_SHARE)
    assert isinstance(slept, Sleep)
    assert rare * 0.9 <= now + slept.seconds <= rare * 1.1
    now += 1.0  # it is woken, since a list says that it has ended
    assert isinstance(next(effects), Sleep)  # until the next slot of the rate limit
    assert isinstance(next(effects), Send)
    effects.close()


@pytest.mark.parametrize("works", [True, False])
def test_an_unknown_outcome_makes_no_second_job(driver: str, emulator: Emulator, works: bool) -> None:
    """A submission without a response is looked up in its session, and each input has one job."""
    emulator.control.script("grade-3", after_seconds=1)
    fault = "drop_after" if works else "drop_before"
    emulator.control.fault(fault, on="submit", times=2)
    outcomes = run(driver, emulator, (f"m{number}" for number in range(40)), recovery_timeout=1.0)
    assert {outcome.state.value for outcome in outcomes} == {"completed"}
    jobs = emulator.control.jobs()
    assert len(jobs) == 40
    by_id = {job["id"]: job["message"] for job in jobs}
    assert all(
        by_id[str(outcome.job_id)] == outcome.output["message"] == f"m{outcome.index}" for outcome in outcomes
    )


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("end", ["rerun", "cancel"])
def test_a_submission_that_two_attempts_recorded(emulator: Emulator, order: int, end: str) -> None:
    """Two attempts that lived at the same time have two sessions; the next one finds the job in either."""
    emulator.control.script("grade-3", outcome="never")
    ledger, inputs = MemoryLedger(), ["a"]
    options: dict[str, Any] = {"batch_id": BATCH, "recovery_timeout": 0.5}
    run("async", emulator, inputs, ledger=ledger, detach=True, **options)
    job_id = str(ledger.entries[0].job_id)
    sent = replace(ledger.entries[0], job_id=None, state=SUBMITTING)
    not_sent = replace(sent, session_id=new_session_of(UUID(BATCH)))
    rows = [{"entry": entry.to_list()} for entry in (sent, not_sent)][::order]
    appended: list[Row] = []

    async def append(new: list[Row]) -> None:
        appended.extend(new)

    options["ledger"] = BatchRecord.load(rows, append, retried=True)
    if end == "rerun":
        emulator.control.finish(job_id)
        emulator.control.script("grade-3", outcome="completed")
        assert [outcome.job_id for outcome in run("async", emulator, inputs, **options)] == [job_id]
    else:
        assert asyncio.run(cancel_unread(emulator, **options)) == [job_id]
        assert emulator.control.job(job_id)["state"] == "cancelled"
    assert len(emulator.control.jobs()) == 1


async def cancel_unread(emulator: Emulator, *, recovery_timeout: float, **options: Any) -> list[str]:
    """Cancel what an earlier run left, and return the jobs."""
    settings: Any = {"base_url": emulator.base_url, "recovery_timeout": recovery_timeout}
    async with AsyncNoukai("nk_test_key", **settings) as client:
        return [one.job_id for one in await client.flow(FLOW).jobs((), **options).cancel("not wanted")]


def test_the_log_names_only_jobs_that_did_not_complete(
    driver: str, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that completes writes no line, and each of the others one, with its input and the reason."""
    caplog.set_level("INFO", "noukai_core")
    inputs = [scripted("bad", outcome="failed", error="no luck"), *(f"m{number}" for number in range(20)), 7]
    outcomes = run(driver, emulator, inputs)
    (failed,) = [outcome.job_id for outcome in outcomes if outcome.state == "failed"]
    assert sorted(caplog.messages) == [
        f"Noukai batch of {FLOW}: input 21 rejected (inputs[21] is of type int, but must be a message, a "
        "mapping or a JobRequest)",
        f"Noukai job {failed} of {FLOW}: failed (input 0: no luck)",
    ]


def test_faults_do_not_flood_the_log(
    driver: str, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """However many requests fail, each kind of warning is written once in a while."""
    caplog.set_level("INFO", "noukai_core")
    emulator.control.fault("status", on="submit", probability=0.3, seed=1, status=429)
    outcomes = run(driver, emulator, [f"m{number}" for number in range(20)])
    assert {outcome.state.value for outcome in outcomes} == {"completed"}
    assert len(caplog.messages) == 1
    assert "rejected (retryable)" in caplog.messages[0]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            JobFailedError(
                "Noukai job job_1 failed: no luck",
                job_id="job_1",
                status=JobStatus(id="job_1", state="failed", error="no luck"),
            ),
            "no luck",
        ),
        (NoukaiError("Noukai job job_1 of acme/x/y timed out after 2 s"), "timed out after 2 s"),
        (InvalidInputError("message is 7"), "message is 7"),
    ],
)
def test_the_reason_of_an_outcome(error: NoukaiError, reason: str) -> None:
    """The reason does not repeat the job's id."""
    assert JobOutcome(0, "job_1", OutcomeState.UNKNOWN, error=error).reason == reason


def resumed(entry: LedgerEntry, **options: Any) -> Batch:
    """Return a batch that goes on with what an earlier run left for its first input."""
    settings = ClientOptions(api_key="nk_test", base_url="http://127.0.0.1:1")
    batch = Batch(
        FlowPath("acme", "spelling", "grade-3"), settings, BatchOptions(batch_id=BATCH, **options), monotonic
    )
    batch.resume({0: entry})
    return batch


def test_an_interrupted_submission_in_a_users_session_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """A cancel cannot find the job of such a submission, and says that it may be left running."""
    entry = LedgerEntry(index=0, submission_id=BATCH, session_id=str(uuid4()), in_users_session=True)
    with pytest.raises(StopIteration):
        next(resumed(entry).cancelling(0))
    assert caplog.messages == [
        f"Noukai submission {BATCH} to {FLOW}: may be left running (interrupted before the response)"
    ]


@pytest.mark.parametrize("state", ["submitted", "completed"])
def test_an_invalid_input_of_a_rerun_ends_no_capped_batch(state: str) -> None:
    """With a cap, the first input has to be valid. A rerun whose first jobs are known is past that."""
    entry = LedgerEntry(index=0, submission_id=BATCH, session_id=BATCH, job_id="job-1", state=state)
    batch = resumed(entry, trace=True, max_cost_usd=5)
    for given in (Given(0, "good"), Given(1, {"massage": "typo"})):
        batch._job(given)
    assert batch.error is None
    assert [outcome.state for outcome in batch.outcomes] == ["rejected"]
