"""Which runs of a flow have ended: none is missed, and none comes twice."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from noukai_core import EndedRuns, FlowRun, InvalidInputError, InvalidResponseError, Noukai, RunsCursor
from noukai_core._api import endpoints
from noukai_core._api.parsing import HttpResponse
from noukai_core._engine.runs import read_ended_runs
from noukai_core.emulator import Emulator
from tests.core.scripted_server import FLOW, ScriptedServer, rejection, respond
from tests.core.turned_clock import Turned

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient

KEY = "nk_test_any"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
ENDS = ("completed", "failed", "cancelled")


class Runs:
    """The runs of one flow on a server that lists the newest hundred of each state, and ignores cursors."""

    def __init__(self, *, times: bool = True) -> None:
        self.times = times
        self.rows: list[dict[str, Any]] = []
        self.hidden: set[str] = set()

    def begin(self, state: str = "running", *, visible: bool = True) -> str:
        run_id = f"run-{len(self.rows)}"
        began = (BEGIN + timedelta(seconds=len(self.rows))).isoformat()
        times = {"createdAt": began} if self.times else {}
        self.rows.append({"id": run_id, "flowId": "fl-1", "status": state, "triggerType": "job", **times})
        if not visible:
            self.hidden.add(run_id)
        return run_id

    def end(self, run_id: str, state: str = "completed") -> None:
        next(row for row in self.rows if row["id"] == run_id)["status"] = state

    @property
    def open(self) -> list[str]:
        return [row["id"] for row in self.rows if row["status"] == "running"]

    def response(self, path: str) -> Any:
        url = urlsplit(path)
        rows = [row for row in reversed(self.rows) if row["id"] not in self.hidden]
        if url.path == "flow-runs":
            query = parse_qs(url.query)
            assert query["flow_id"] == ["fl-1"]
            state = query.get("status", [None])[0]
            return {"runs": [row for row in rows if state in (None, row["status"])][: int(query["limit"][0])]}
        run_id = url.path.split("/")[1]
        return {"flowRun": next(row for row in rows if row["id"] == run_id), "steps": []}

    def read(self, cursor: RunsCursor | None) -> EndedRuns:
        """Read what has ended, through a cursor that was stored as JSON."""
        stored = None if cursor is None else RunsCursor.from_json(json.loads(json.dumps(cursor.to_json())))
        clock = Turned(lambda call, now: HttpResponse(200, {}, json.dumps(self.response(call.path)).encode()))
        return clock.run(read_ended_runs("fl-1", stored, clock))


def ids(seen: EndedRuns) -> list[str]:
    return [run.id for run in seen.runs]


def test_what_ended_before_the_first_read() -> None:
    """The first read returns nothing; a run that was open then is returned when it ends."""
    runs = Runs()
    runs.begin("completed")
    early = runs.begin()
    first = runs.read(None)
    assert (ids(first), first.complete) == ([], True)
    runs.end(early, "failed")
    second = runs.read(first.cursor)
    assert [(run.id, run.state) for run in second.runs] == [(early, "failed")]
    assert ids(runs.read(second.cursor)) == []


@pytest.mark.parametrize("times", [True, False], ids=["with times", "without times"])
@pytest.mark.parametrize("seed", range(20))
def test_no_run_is_missed_and_none_comes_twice(seed: int, times: bool) -> None:
    """Whatever begins and ends between two reads, each run comes once, when it has ended."""
    chance = random.Random(seed)
    runs = Runs(times=times)
    for _ in range(chance.choice([0, 3, 150])):
        runs.begin(chance.choice([*ENDS, "running"]))
    cursor, came = None, list[str]()
    before = {row["id"] for row in runs.rows if row["status"] != "running"}
    # A run that is open, but not among the newest hundred of the first read, is not known.
    before |= {row["id"] for row in runs.rows[:-100]}
    for _ in range(12):
        seen = runs.read(cursor)
        assert seen.complete
        cursor = seen.cursor
        came += ids(seen)
        for _ in range(chance.choice([0, 1, 5, 60, 99])):
            runs.begin(chance.choice([*ENDS, "running", "running"]))
        for run_id in runs.open:
            if chance.random() < 0.3:
                runs.end(run_id, chance.choice(ENDS))
    for run_id in runs.open:
        runs.end(run_id)
    while ids(seen := runs.read(cursor)):
        cursor, came = seen.cursor, came + ids(seen)
    assert sorted(came) == sorted({row["id"] for row in runs.rows} - before)


def test_more_than_a_page_between_two_reads() -> None:
    """The lists of the single states show up to a hundred runs each."""
    runs = Runs()
    cursor = runs.read(None).cursor
    begun = [runs.begin(ENDS[number % 3]) for number in range(290)]
    seen = runs.read(cursor)
    assert seen.complete
    assert sorted(ids(seen)) == sorted(begun)
    assert ids(runs.read(seen.cursor)) == []


def test_more_than_the_server_lists() -> None:
    """What the server does not list any more cannot be read, and the result says that there may be more."""
    runs = Runs()
    runs.begin("completed")
    cursor = runs.read(None).cursor
    for _ in range(150):
        runs.begin("completed")
    seen = runs.read(cursor)
    assert (len(seen.runs), seen.complete) == (100, False)
    assert ids(runs.read(seen.cursor)) == []


def test_a_run_that_is_listed_late() -> None:
    """A run that appears behind others that are known already is not missed."""
    runs = Runs()
    cursor = runs.read(None).cursor
    runs.begin("completed")
    late = runs.begin("completed", visible=False)
    runs.begin("completed")
    seen = runs.read(cursor)
    runs.hidden.clear()
    assert late not in ids(seen)
    assert ids(runs.read(seen.cursor)) == [late]


def test_an_old_run_is_not_new() -> None:
    """A list of one state reaches further back than the first read did; what it shows there is not new."""
    runs = Runs()
    for _ in range(30):
        runs.begin("failed")
    for _ in range(120):
        runs.begin("completed")
    cursor = runs.read(None).cursor
    begun = [runs.begin("completed") for _ in range(99)] + [runs.begin("cancelled")]
    seen = runs.read(cursor)
    assert sorted(ids(seen)) == sorted(begun)


@pytest.mark.parametrize(
    "response", [(404, "RUN_NOT_FOUND"), (403, "FORBIDDEN")], ids=["forgotten", "refused"]
)
def test_a_run_that_cannot_be_read(
    response: tuple[int, str], scripted: MakeClient, server: ScriptedServer
) -> None:
    """An old run that the server has forgotten, or does not show to this key, is not asked for again."""
    server.on("runs", respond(json={"runs": [{"id": "other", "status": "completed"}]}))
    server.on("trace", rejection(*response))
    seen = scripted().ended_runs("fl-1", RunsCursor({"other": None}, ("gone",)))
    assert (seen.runs, seen.cursor.open) == ((), ())


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator({"*": {"after_seconds": 0}, "slow": {"outcome": "never"}}) as emulator:
        yield emulator


def test_the_runs_of_a_flow(make_client: MakeClient, emulator: Emulator) -> None:
    """Both clients list a flow's runs, and read which have ended."""
    client = make_client(base_url=emulator.base_url)
    job = client.flow(FLOW).job(message="hello")
    job.wait()
    flow_id = job.accepted.flow_id
    listed = client.runs(flow_id)[0]
    assert (listed.id, listed.flow_id, listed.state, listed.trigger) == (job.id, flow_id, "completed", "job")
    first = client.ended_runs(flow_id)
    another = client.flow(FLOW).job(message="hello")
    another.wait()
    assert [run.id for run in client.ended_runs(flow_id, first.cursor).runs] == [another.id]
    assert client.runs(flow_id, state="failed") == ()
    assert len(client.runs(flow_id, limit=1)) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"flow_id": "acme/spelling/grade-3"}, "flow_id"),
        ({"flow_id": ""}, "flow_id"),
        ({"flow_id": "fl-1", "state": "pending"}, "state"),
        ({"flow_id": "fl-1", "limit": 101}, "limit"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], named: str) -> None:
    """Nothing is sent, and the error names the argument."""
    with (
        Noukai(KEY, base_url="http://127.0.0.1:9/api/v1") as client,
        pytest.raises(InvalidInputError) as caught,
    ):
        client.runs(**arguments)
    assert named in str(caught.value)


@pytest.mark.parametrize("stored", [None, 1, [], {}, {"version": 2}, {"version": 1, "known": 1, "open": []}])
def test_a_cursor_that_is_none(stored: object) -> None:
    """What is no stored cursor is not taken for one."""
    assert RunsCursor.from_json(stored) is None


def test_the_payload_of_an_event() -> None:
    """It has plain texts, and nothing that is unknown."""
    run = FlowRun("run-1", "fl-1", "completed", completed_at="2026-01-01T00:00:00Z")
    assert run.as_payload() == {
        "run_id": "run-1",
        "flow_id": "fl-1",
        "state": "completed",
        "completed_at": "2026-01-01T00:00:00Z",
    }


@pytest.mark.parametrize(
    ("response", "reported"),
    [({"runs": "many"}, "has no list of runs"), ({}, "has no list of runs")],
)
def test_a_list_of_runs_that_is_none(response: Any, reported: str) -> None:
    """A response without a list of runs is an error, and not a flow without runs."""
    with pytest.raises(InvalidResponseError, match=reported):
        endpoints.runs("fl-1").read(HttpResponse(200, {}, json.dumps(response).encode()))


def test_a_run_without_a_state() -> None:
    """A run without a state or an id is left out of a list, and is an error if it was asked for."""
    rows = [{"executionId": 7, "status": "done"}, {"id": "run-8"}, {"status": "running"}]
    rows.append({"job_id": True, "id": "run-9", "status": "running"})
    listed = endpoints.runs("fl-1").read(HttpResponse(200, {}, json.dumps({"runs": rows}).encode()))
    assert [run.id for run in listed] == ["7", "run-9"]
    with pytest.raises(InvalidResponseError, match="has no state"):
        endpoints.run("run-8").read(HttpResponse(200, {}, b'{"flowRun": {"id": "run-8"}}'))
