"""The decisions of the batch operator, with a fake task and a local Noukai."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import time
import traceback
from collections import UserList
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import ObjectStoragePath

from noukai_airflow import _batch_run, _task_states
from noukai_airflow._batch_inputs import BatchInputs
from noukai_airflow._batch_log import BatchLog, FolderLog, StateStoreLog
from noukai_airflow._batch_run import BatchRun
from noukai_airflow._compat import AirflowTaskTerminated
from noukai_airflow.exceptions import (
    NoukaiBatchFailedException,
    NoukaiException,
    NoukaiPermanentException,
)
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_airflow.operators.batch import NoukaiRunJobsOperator
from noukai_airflow.triggers import batch as batch_trigger
from noukai_airflow.triggers.batch import NoukaiBatchTrigger
from noukai_core import JobRequest, batch_files
from tests.airflow.conftest import FakeTask, MemoryStore
from tests.airflow.grades import Grade, Undefined
from tests.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from noukai_core.emulator import Emulator

FLOW = "acme/demo/flow"


pytestmark = pytest.mark.usefixtures("connected")


def operator(inputs: Any, **arguments: Any) -> NoukaiRunJobsOperator:
    return NoukaiRunJobsOperator(
        task_id="task", flow=FLOW, inputs=inputs, **{"poll_interval": 0.05, "deferrable": False} | arguments
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def submissions(emulator: Emulator) -> int:
    return emulator.control.counts().get("submit", 0)


def test_a_list(context: Any, emulator: Emulator) -> None:
    """The outputs come back in the order of the inputs, and the XCom says how the batch went."""
    emulator.control.script("flow", after_seconds=0.2)
    outputs = operator(["one", "two", "three"]).execute(context)
    assert [output["message"] for output in outputs] == ["one", "two", "three"]
    assert context["ti"].xcoms["batch_status"]["counts"] == {"completed": 3}
    assert submissions(emulator) == 3


def test_a_file_to_a_folder(context: Any, emulator: Emulator, tmp_path: Path) -> None:
    """A JSONL file is read line by line, the outcomes are written, and the manifest is returned."""
    source = tmp_path / "inputs.jsonl"
    source.write_text('"one"\n\n{"message": "two", "key": "second"}\n')
    folder = tmp_path / "out"
    returned = operator(f"file://{source}", output_path=f"file://{folder}").execute(context)
    assert returned["counts"] == {"completed": 2}
    assert returned["output_path"] == f"file://{folder}"
    (part,) = returned["parts"]
    rows = sorted(lines(folder / part), key=lambda row: row["index"])
    assert [(row["key"], row["state"], row["output"]["message"]) for row in rows] == [
        (None, "completed", "one"),
        ("second", "completed", "two"),
    ]
    assert not (folder / "failed.jsonl").exists()


def test_paths_of_airflow(context: Any, emulator: Emulator, tmp_path: Path) -> None:
    """The file of the inputs and the folder of the outcomes may each be an `ObjectStoragePath`."""
    (tmp_path / "inputs.jsonl").write_text('"one"\n')
    folder = ObjectStoragePath(f"file://{tmp_path}")
    returned = operator(folder / "inputs.jsonl", output_path=folder / "out").execute(context)
    assert (returned["counts"], returned["output_path"]) == ({"completed": 1}, f"file://{tmp_path}/out")
    assert (tmp_path / "out" / returned["parts"][0]).exists()


@pytest.mark.parametrize("kept_by", [StateStoreLog, FolderLog])
def test_a_store_that_fails_when_all_jobs_have_ended(
    context: Any,
    emulator: Emulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kept_by: type[BatchLog],
) -> None:
    """The outcomes of a batch are returned even if nothing can be recorded any more."""
    write = kept_by.write_header

    def fail(log: Any, header: Any) -> None:
        if header.get("delivered"):
            raise RuntimeError("database is locked")
        write(log, header)

    monkeypatch.setattr(kept_by, "write_header", fail)
    output = {"output_path": f"file://{tmp_path}/out"} if kept_by is FolderLog else {}
    returned: Any = operator(["one"], **output).execute(context)
    assert returned["counts"] == {"completed": 1} if output else returned[0]["message"] == "one"
    assert "Noukai batch of acme/demo/flow: not recorded (database is locked)" in caplog.text
    assert submissions(emulator) == 1


def test_a_csv_file(context: Any, emulator: Emulator, tmp_path: Path) -> None:
    """The columns of a CSV file besides `message` and `key` are parameters."""
    source = tmp_path / "inputs.csv"
    source.write_text('key,message,level\na,"Hello,\nthere",3\n')
    operator(f"file://{source}").execute(context)
    (job,) = emulator.control.jobs()
    assert (job["message"], job["parameters"]) == ("Hello,\nthere", {"level": "3"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fail_on": 2}, "fail_on is 2, but must be 'any', 'all', or a share"),
        ({"fail_on": "some"}, "fail_on is 'some'"),
        ({"fail_on": True}, "fail_on is True"),
        ({"max_concurrency": 0}, "max_concurrency is 0"),
        ({"max_cost_usd": 5}, "max_cost_usd needs trace=True"),
        ({"max_cost_usd": "much", "trace": True}, "max_cost_usd is 'much', but must be an amount above 0"),
        ({"max_cost_usd": float("nan"), "trace": True}, "max_cost_usd is nan"),
        ({"max_cost_usd": 0, "trace": True}, "max_cost_usd is 0"),
        ({"multiple_outputs": True}, "multiple_outputs needs output_path"),
        ({"output_type": dict}, "output_type is <class 'dict'>, but must be a pydantic model"),
    ],
)
def test_invalid_arguments_fail_when_the_dag_is_parsed(arguments: dict[str, Any], message: str) -> None:
    """Arguments without templates are checked at once, and the message says what is allowed."""
    with pytest.raises(ValueError, match=re.escape(message)):
        operator(["one"], **arguments)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("Hello", "inputs is the text 'Hello', but must be a list of messages, or the URI of a file"),
        ({"message": "Hello"}, "inputs is a dict"),
        (Table(), "inputs is a Table"),
        ({"Hello"}, "inputs is a set, whose order differs in each process: sort it first"),
        (7, "inputs is a int"),
        ([], "inputs is empty"),
        ("file:///nowhere/inputs.jsonl", "there is no such file"),
        ("file:///nowhere/inputs.txt", "ends in .jsonl or .csv"),
        ("nosuchscheme://bucket/inputs.jsonl", "cannot be opened"),
        (["one", 7], "inputs[1] is of type int, but must be a message"),
        (["one", {"text": "two"}], "inputs[1] has text, but may be a message, or have message, parameters"),
        (["one", {"key": "two"}], "inputs[1]: neither message nor parameters is given"),
        (["one", JobRequest(FLOW, "two", version="latest")], "inputs[1]: version is 'latest'"),
        (["one", JobRequest(FLOW, "two", session_id="my session")], "inputs[1]: session_id is"),
    ],
)
def test_inputs_that_are_none(context: Any, emulator: Emulator, inputs: Any, message: str) -> None:
    """What is no batch is rejected permanently, and nothing is sent."""
    with pytest.raises(NoukaiPermanentException, match=re.escape(message)):
        operator(inputs).execute(context)
    assert submissions(emulator) == 0


@pytest.mark.parametrize(
    "uri",
    [
        "file:///nowhere/inputs.jsonl?sig=SECRET",
        "file:///nowhere/inputs.txt?sig=SECRET",
        "nosuchscheme://user:SECRET@host/inputs.jsonl",
    ],
)
def test_no_secret_of_a_uri_is_shown(context: Any, uri: str) -> None:
    """An error about a file names it without the signature or password in its URI."""
    with pytest.raises(NoukaiPermanentException, match="inputs is") as raised:
        operator(uri).execute(context)
    assert "SECRET" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"one"\n{"message": \n', "line 2: no JSON"),
        ('"one"\n\n7\n', "line 3: neither a text nor an object"),
        ("", "is empty: there is nothing to run"),
        ("\n\n", "is empty: there is nothing to run"),
        ('{"text": "one"}\n', "line 1 has text, but may"),
        (b'"\xff"\n', "cannot be read"),
    ],
)
def test_a_malformed_line(
    context: Any, emulator: Emulator, tmp_path: Path, content: str | bytes, message: str
) -> None:
    """A line that is no input ends the task, which names the line, and nothing is sent."""
    source = tmp_path / "inputs.jsonl"
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(NoukaiPermanentException, match=re.escape(message)):
        operator(f"file://{source}").execute(context)
    assert submissions(emulator) == 0


@pytest.mark.parametrize(
    "path",
    [
        "out",
        "/out",
        "nosuchscheme://bucket/out",
        "file:///proc/out",
        "file://school/out",
        "file:///tmp/o\0ut",
        7,
        Path("/tmp/out"),
    ],
)
def test_an_output_path_that_cannot_be_written(context: Any, emulator: Emulator, path: Any) -> None:
    """A path without a scheme or without permission, and what is no path, fail before anything is sent."""
    with pytest.raises(NoukaiPermanentException, match="output_path"):
        operator(["one"], output_path=path).execute(context)
    assert submissions(emulator) == 0


def scripted(message: str, **spec: Any) -> dict[str, Any]:
    """An input whose job behaves in a way of its own."""
    return {"message": message, "parameters": {"_emulator": spec}, "key": f"row {message}"}


@pytest.mark.parametrize(
    ("fail_on", "failed", "fails"),
    [
        ("any", 1, True),
        ("any", 0, False),
        ("all", 3, False),
        ("all", 4, True),
        (0.5, 2, False),
        (0.5, 3, True),
    ],
)
def test_fail_on(
    context: Any, emulator: Emulator, tmp_path: Path, fail_on: Any, failed: int, fails: bool
) -> None:
    """The task fails if any job fails, if all do, or if more than a share of them do."""
    bad = {"outcome": "failed", "error": "MODEL_OVERLOADED"}
    inputs = [
        scripted(str(place), after_seconds=0.1, **(bad if place < failed else {})) for place in range(4)
    ]
    task = operator(inputs, output_path=f"file://{tmp_path}/out", fail_on=fail_on)
    if not fails:
        returned = task.execute(context)
        assert returned["counts"].get("failed", 0) == failed
    else:
        with pytest.raises(NoukaiBatchFailedException, match=rf"{failed} failed of 4 jobs: MODEL_OVERLOADED"):
            task.execute(context)
    if failed:
        rows = lines(tmp_path / "out" / "failed.jsonl")
        assert [(row["key"], row["error"]) for row in rows] == [
            (f"row {place}", "MODEL_OVERLOADED") for place in range(failed)
        ]


def test_the_reasons_of_failed_jobs_are_one_line(context: Any, emulator: Emulator) -> None:
    """What a flow says of its failure neither ends the line of the exception nor shows a key."""
    key = f"nk_live_{'0123456789abcdef' * 2}"
    said = f"first\n\x1b[31m2026-01-01 ERROR forged {key}"
    task = operator([scripted("bad", outcome="failed", error=said)])
    with pytest.raises(NoukaiBatchFailedException) as raised:
        task.execute(context)
    assert "first 2026-01-01 ERROR forged " in str(raised.value)
    assert key not in str(raised.value)


async def serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let triggers use the connection to the local Noukai, and resume their task at once."""
    settings = NoukaiHook.settings

    async def aget_settings(_: NoukaiHook, *, rejected: object = None) -> object:
        return settings

    monkeypatch.setattr(NoukaiHook, "aget_settings", aget_settings)
    monkeypatch.setattr(batch_trigger, "wake_up_delay", lambda late: 0.0)


def deferred(task: NoukaiRunJobsOperator, context: Any, *, resumed: bool = False) -> NoukaiBatchTrigger:
    """Run the task until it defers, and return its trigger."""
    with pytest.raises(TaskDeferred) as raised:
        (task.execute_complete if resumed else task.execute)(context)
    assert isinstance(raised.value.trigger, NoukaiBatchTrigger)
    return raised.value.trigger


def finish_all(emulator: Emulator, **spec: Any) -> None:
    for job in emulator.control.jobs():
        if job["state"] not in ("completed", "failed", "cancelled"):
            emulator.control.finish(job["id"], **spec)


@pytest.fixture(params=["state store", "folder"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Where the batch is recorded."""
    return {} if request.param == "state store" else {"output_path": f"file://{tmp_path}/out"}


def completed(returned: Any) -> int:
    return len(returned) if isinstance(returned, list) else int(returned["counts"]["completed"])


def test_a_deferral(context: Any, emulator: Emulator, output: dict[str, Any]) -> None:
    """A deferrable task submits everything, defers with the sessions of its jobs, and fetches the results."""
    emulator.control.script("flow", outcome="never")
    task = operator(["one", "two", "three"], deferrable=True, **output)
    trigger = deferred(task, context)
    assert (sum(trigger.sessions.values()), trigger.until) == (3, 0)
    finish_all(emulator, result=1)
    assert completed(task.execute_complete(context)) == 3
    assert submissions(emulator) == 3


@pytest.mark.usefixtures("connected_by_name")
def test_a_deferred_batch_keeps_its_connection(
    context: Any, emulator: Emulator, output: dict[str, Any]
) -> None:
    """A batch whose DAG names another connection since it deferred gets its results from the first one."""
    emulator.control.script("flow", outcome="never")
    task = operator(["one", "two"], deferrable=True, **output)
    with pytest.raises(TaskDeferred) as raised:
        task.execute(context)
    finish_all(emulator, result=1)
    again = operator(["one", "two"], deferrable=True, noukai_conn_id="elsewhere", **output)
    returned = again.resume_execution("execute_complete", raised.value.kwargs, context)
    assert (completed(returned), submissions(emulator)) == (2, 2)


def test_waves(context: Any, emulator: Emulator, output: dict[str, Any]) -> None:
    """With more inputs than may run at once, the task is resumed while half of the jobs still run."""
    emulator.control.script("flow", outcome="never")
    task = operator([str(place) for place in range(10)], deferrable=True, max_concurrency=4, **output)
    trigger = deferred(task, context)
    assert (sum(trigger.sessions.values()), trigger.until) == (4, 2)
    for job in emulator.control.jobs()[:2]:
        emulator.control.finish(job["id"], result=1)
    # The session has six jobs, of which two have ended.
    assert sum(deferred(task, context, resumed=True).sessions.values()) == 6
    assert submissions(emulator) == 6
    for _ in range(2):
        finish_all(emulator, result=1)
        try:
            returned = task.execute_complete(context)
        except TaskDeferred:
            continue
    assert (completed(returned), submissions(emulator)) == (10, 10)


def test_waves_of_results(
    context: Any, emulator: Emulator, output: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results of very many jobs are fetched while others still run, although no input is left."""
    monkeypatch.setattr(_batch_run, "_MANY_RESULTS", 2)
    emulator.control.script("flow", outcome="never")
    task = operator([str(place) for place in range(5)], deferrable=True, **output)
    assert deferred(task, context).until == 2
    for job in emulator.control.jobs()[:3]:
        emulator.control.finish(job["id"], result=1)
    assert deferred(task, context, resumed=True).until == 0
    assert context["ti"].xcoms["batch_status"]["counts"] == {"completed": 3}
    finish_all(emulator, result=1)
    assert (completed(task.execute_complete(context)), submissions(emulator)) == (5, 5)


def test_a_retry(context: Any, emulator: Emulator, output: dict[str, Any]) -> None:
    """A retry attaches to the jobs that run, submits what failed again, and keeps what has completed."""
    emulator.control.script("flow", outcome="never")
    inputs = ["one", "two", "three", "four"]
    deferred(operator(inputs, deferrable=True, **output), context)
    jobs = {job["message"]: job["id"] for job in emulator.control.jobs()}
    emulator.control.finish(jobs["one"], result=1)
    emulator.control.finish(jobs["two"], "failed", error="MODEL_OVERLOADED")
    emulator.control.finish(jobs["three"], "cancelled")
    emulator.control.finish(jobs["four"], result=4)
    with pytest.raises(NoukaiBatchFailedException, match="1 failed, 1 cancelled of 4 jobs"):
        operator(inputs, deferrable=True, **output).execute_complete(context)
    context["ti"].try_number = 2
    emulator.control.script("flow", after_seconds=0.1)
    task = operator(inputs, on_cancelled="skip", **output)
    returned = task.execute(context)
    assert submissions(emulator) == 5
    if not output:
        assert returned == [1, {"message": "two"}, None, 4]
    else:
        assert returned["counts"] == {"completed": 3, "cancelled": 1}


def test_an_output_that_no_xcom_can_hold(
    context: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Such an output is not valid, which the log says; the retry submits its input again, and no other."""
    emulator.control.script("flow", outcome="never")
    inputs = ["reserved", "odd"]
    deferred(operator(inputs, deferrable=True), context)
    jobs = {job["message"]: job["id"] for job in emulator.control.jobs()}
    emulator.control.finish(jobs["reserved"], result={"__classname__": "builtins.int"})
    emulator.control.finish(jobs["odd"], result="a\0b")
    with pytest.raises(NoukaiBatchFailedException, match=r"1 invalid output of 2 jobs: .*'__classname__'"):
        operator(inputs, deferrable=True).execute_complete(context)
    assert f"Noukai job {jobs['reserved']} of {FLOW}: invalid output (input 0: the output has" in caplog.text
    context["ti"].try_number = 2
    emulator.control.script("flow", after_seconds=0.1)
    assert operator(inputs).execute(context) == [{"message": "reserved"}, "a\ufffdb"]
    assert submissions(emulator) == 3


@pytest.fixture(params=[False, True], ids=["waiting", "deferred"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    """Whether the task waits in the triggerer."""
    return bool(request.param)


def run_to_end(task: NoukaiRunJobsOperator, context: Any) -> Any:
    """Run a task, and resume it as often as it defers."""
    run = task.execute
    while True:
        try:
            return run(context)
        except TaskDeferred as deferral:
            json.dumps(deferral.trigger.serialize())  # as Airflow stores it
            run = task.execute_complete


def test_a_type_that_cannot_be_built(context: Any, emulator: Emulator, deferrable: bool) -> None:
    """A model without one of its types fails the task before anything is submitted, and no retry helps."""
    with pytest.raises(NoukaiPermanentException, match=r"output_type Undefined cannot be built: .*Missing"):
        operator(["one"], deferrable=deferrable, output_type=Undefined).execute(context)
    assert submissions(emulator) == 0


def test_typed_outputs(
    context: Any, emulator: Emulator, output: dict[str, Any], tmp_path: Path, deferrable: bool
) -> None:
    """Outputs of the type are returned or written as JSON values, with the defaults of the model."""
    inputs = [scripted(str(points), after_seconds=0.2, result={"points": points}) for points in range(2)]
    returned = run_to_end(operator(inputs, deferrable=deferrable, output_type=Grade, **output), context)
    expected = [{"points": points, "comment": "none"} for points in range(2)]
    if output:
        rows = [row for part in returned["parts"] for row in lines(tmp_path / "out" / part)]
        returned = [row["output"] for row in sorted(rows, key=lambda row: int(row["index"]))]
    assert returned == expected


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"points": "many"}, r"the output is no Grade: points: .* integer"),
        ({"points": 1, "comment": "unwritable"}, r"Grade\.model_dump raised PydanticSerializationError"),
    ],
    ids=["invalid", "unwritable"],
)
def test_an_output_of_another_type(
    context: Any,
    emulator: Emulator,
    output: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    deferrable: bool,
    result: Any,
    reason: str,
) -> None:
    """An output that is not of the type is one of a job that did not complete: a retry submits a new job."""
    inputs = ["good", "bad"]
    emulator.control.script("flow", outcome="never")
    task = operator(inputs, deferrable=True, output_type=Grade, **output)
    deferred(task, context)
    jobs = {job["message"]: job["id"] for job in emulator.control.jobs()}
    emulator.control.finish(jobs["good"], result={"points": 1})
    emulator.control.finish(jobs["bad"], result=result)
    with pytest.raises(NoukaiBatchFailedException, match=f"1 invalid output of 2 jobs: .*{reason}") as raised:
        task.execute_complete(context)
    assert raised.value.counts == {"completed": 1, "invalid_output": 1}
    assert "hunter2" not in str(raised.value) + caplog.text
    said = rf"Noukai job {jobs['bad']} of {FLOW}: invalid output \(input 1: .*{reason}"
    assert len(re.findall(said, caplog.text)) == 1
    if output:
        (row,) = lines(tmp_path / "out" / "failed.jsonl")
        assert (row["state"], row["job_id"], row["output"]) == ("invalid_output", jobs["bad"], None)
        assert re.search(reason, row["error"])
    context["ti"].try_number = 2
    emulator.control.script("flow", after_seconds=0.1, result={"points": 2})
    returned = run_to_end(operator(inputs, deferrable=deferrable, output_type=Grade, **output), context)
    assert (completed(returned), submissions(emulator)) == (2, 3)
    if not output:
        assert [grade["points"] for grade in returned] == [1, 2]


def test_invalid_outputs_that_are_tolerated(
    context: Any, emulator: Emulator, output: dict[str, Any], deferrable: bool
) -> None:
    """An invalid output counts as a failure for `fail_on`, and is none in what the task returns."""
    results: list[dict[str, Any]] = [{"points": 1}, {"points": "many"}]
    inputs = [scripted(str(place), after_seconds=0.2, result=one) for place, one in enumerate(results)]
    returned = run_to_end(
        operator(inputs, deferrable=deferrable, output_type=Grade, fail_on="all", **output), context
    )
    if output:
        assert returned["counts"] == {"completed": 1, "invalid_output": 1}
    else:
        assert returned == [{"points": 1, "comment": "none"}, None]
    assert submissions(emulator) == 2


def test_a_type_that_only_a_retry_has(context: Any, emulator: Emulator, output: dict[str, Any]) -> None:
    """What an earlier try has recorded or written is kept as it is; jobs that still run are validated."""
    emulator.control.script("flow", outcome="never")
    inputs = ["ended", "running"]
    first = operator(inputs, deferrable=True, **output)
    deferred(first, context)
    jobs = {job["message"]: job["id"] for job in emulator.control.jobs()}
    emulator.control.finish(jobs["ended"], result={"score": 1})
    deferred(first, context, resumed=True)
    emulator.control.finish(jobs["running"], result={"score": 1})
    context["ti"].try_number = 2
    with pytest.raises(NoukaiBatchFailedException, match=r"1 invalid output of 2 jobs: .*points: Field"):
        operator(inputs, output_type=Grade, **output).execute(context)
    assert submissions(emulator) == 2


def test_a_clear(
    context: Any, emulator: Emulator, output: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clear cancels what runs, and starts again from nothing, where the record outlives it."""
    monkeypatch.setattr(_batch_run, "CLEAR_DISCARDS_STATE", False)
    emulator.control.script("flow", outcome="never")
    task = operator(["one", "two"], deferrable=True, **output)
    deferred(task, context)
    first = emulator.control.jobs()
    emulator.control.finish(first[0]["id"], result=1)
    context["ti"].try_number, context["ti"].max_tries = 2, 1
    emulator.control.script("flow", after_seconds=0.1)
    returned = operator(["one", "two"], **output).execute(context)
    assert completed(returned) == 2
    assert submissions(emulator) == 4
    assert emulator.control.counts(first[1]["id"])["cancel"] == 1


def test_a_clear_with_inputs_that_are_none(
    context: Any, emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A clear cancels what runs, but if its inputs are invalid, the outcomes that were paid for are kept."""
    emulator.control.script("flow", outcome="never")
    output: Any = {"output_path": f"file://{tmp_path}/out"}
    task = operator(["one", "two"], deferrable=True, **output)
    deferred(task, context)
    completed, running = (job["id"] for job in emulator.control.jobs())
    emulator.control.finish(completed, result=1)
    deferred(task, context, resumed=True)
    context["ti"].try_number, context["ti"].max_tries = 2, 1
    with pytest.raises(NoukaiPermanentException, match=r"inputs\[1\] is of type int"):
        operator(["one", 7], **output).execute(context)
    (part,) = (tmp_path / "out").glob("part-*.jsonl")
    assert [row["job_id"] for row in lines(part)] == [completed]
    assert emulator.control.counts(running)["cancel"] == 1
    assert "may be left running" not in caplog.text
    emulator.control.script("flow", after_seconds=0.1)
    context["ti"].try_number, context["ti"].max_tries = 3, 2
    assert operator(["one", "two"], **output).execute(context)["counts"] == {"completed": 2}


@pytest.mark.parametrize("sequence", [list, UserList])
def test_changed_inputs(
    context: Any, emulator: Emulator, output: dict[str, Any], sequence: Callable[[list[str]], Any]
) -> None:
    """A retry with other inputs is refused, since its jobs would be those of the earlier inputs.

    So it is with sequences of other types, as the outputs of a mapped task are.
    """
    emulator.control.script("flow", outcome="never")
    deferred(operator(sequence(["one"]), deferrable=True, **output), context)
    context["ti"].try_number = 2
    with pytest.raises(NoukaiPermanentException, match="inputs are not those of the task's earlier try"):
        operator(sequence(["two"]), **output).execute(context)
    assert submissions(emulator) == 1


@pytest.mark.parametrize(
    ("content", "modified", "same"), [('"one"\n', 2, True), ('"two"\n', 1, False)], ids=["again", "changed"]
)
def test_a_file_is_known_by_its_content(
    context: Any, emulator: Emulator, tmp_path: Path, content: str, modified: int, same: bool
) -> None:
    """A retry continues with the same bytes, written again, and refuses others of the same age and size."""
    source = tmp_path / "inputs.jsonl"
    source.write_text('"one"\n')
    os.utime(source, (1, 1))
    emulator.control.script("flow", outcome="never")
    deferred(operator(f"file://{source}", deferrable=True), context)
    source.write_text(content)
    os.utime(source, (modified, modified))
    context["ti"].try_number = 2
    finish_all(emulator, result=1)
    if same:
        assert operator(f"file://{source}").execute(context) == [1]
    else:
        with pytest.raises(NoukaiPermanentException, match="inputs are not those of the task's earlier try"):
            operator(f"file://{source}").execute(context)
    assert submissions(emulator) == 1


def test_a_version_of_a_storage_spares_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the storage says that an object is the same version, its content is not read again."""
    source = tmp_path / "inputs.jsonl"
    source.write_text('"one"\n')
    inputs = BatchInputs(f"file://{source}", None)
    fs = inputs._path.fs  # type: ignore[union-attr]
    monkeypatch.setattr(type(fs), "info", lambda *_, **__: {"ETag": '"1"', "type": "file", "size": 6})
    fingerprint = inputs.fingerprint()
    monkeypatch.setattr(BatchInputs, "_content", lambda *_: pytest.fail("read again"))
    assert inputs.matches(json.loads(json.dumps(fingerprint)))


@pytest.mark.parametrize("inputs", [iter(()), map(str, ())], ids=["iterator", "map"])
def test_an_iterator_without_inputs(context: Any, emulator: Emulator, inputs: Any) -> None:
    """Inputs that turn out to be none are an error, as an empty list is, and no success."""
    with pytest.raises(NoukaiPermanentException, match="inputs is empty: there is nothing to run"):
        operator(inputs).execute(context)
    assert submissions(emulator) == 0


def test_the_files_of_a_record_are_read_concurrently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of many small files costs no round trip for each, and its rows keep their order."""
    record = FolderLog(ObjectStoragePath(f"file://{tmp_path}"))
    for number in range(6):
        record.append([{"number": number}])
    both = threading.Barrier(2, timeout=60)
    read_bytes = ObjectStoragePath.read_bytes

    def read(path: ObjectStoragePath) -> bytes:
        both.wait()
        return read_bytes(path)

    monkeypatch.setattr(ObjectStoragePath, "read_bytes", read)
    assert [row["number"] for row in record.rows()] == list(range(6))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.jsonl", b'{"number": 7}'),
        ("000000002-{batch}-{writer}.jsonl", b'{"number": "\xc3'),
        ("000000002-{batch}-{writer}.jsonl", b"[" * 100_000),
    ],
    ids=["another file", "cut inside a character", "nested"],
)
def test_a_record_with_a_damaged_file(tmp_path: Path, name: str, content: bytes) -> None:
    """What was cut off, or is no part of the record, costs none of the other rows."""
    record = FolderLog(ObjectStoragePath(f"file://{tmp_path}"))
    record.append([{"number": 1}])
    (file,) = (tmp_path / "_noukai").iterdir()
    _, batch, writer = file.stem.split("-")
    (file.parent / name.format(batch=batch, writer=writer)).write_bytes(content)
    assert list(record.rows()) == [{"number": 1}]


def test_a_folder_with_other_outcomes(context: Any, emulator: Emulator, tmp_path: Path) -> None:
    """Outcomes of another task are neither mixed with those of this one nor deleted."""
    path = f"file://{tmp_path}/out"
    operator(["one"], output_path=path).execute(context)
    other = {"ti": FakeTask(), "task_state_store": MemoryStore()}
    with pytest.raises(NoukaiPermanentException, match="has the outcomes of another task"):
        operator(["one"], output_path=path).execute(other)
    assert submissions(emulator) == 1


def test_without_a_place_for_the_record(emulator: Emulator) -> None:
    """Before Airflow 3.3, a batch that must be continued needs an output folder."""
    context = {"ti": FakeTask()}
    with pytest.raises(NoukaiPermanentException, match="set output_path, or durable=False"):
        operator(["one"]).execute(context)
    assert submissions(emulator) == 0
    emulator.control.script("flow", after_seconds=0.1)
    assert operator(["one"], durable=False).execute(context) == [{"message": "one"}]


def test_outputs_that_are_too_large(context: Any, emulator: Emulator) -> None:
    """Outputs of more than a MiB are not returned, and the error names the argument that helps."""
    emulator.control.script("flow", after_seconds=0.1, result_bytes=600_000)
    with pytest.raises(NoukaiPermanentException, match="set output_path"):
        operator(["one", "two"]).execute(context)


def test_outputs_of_two_tries_that_are_too_large(context: Any, emulator: Emulator) -> None:
    """What an earlier try has collected counts for what may be returned."""
    emulator.control.script("flow", outcome="never")
    inputs = [f"message {number}" for number in range(120)]
    with pytest.raises(TaskDeferred):
        operator(inputs, deferrable=True).execute(context)
    jobs = emulator.control.jobs()
    for job in jobs[:60]:
        emulator.control.finish(job["id"], result_bytes=10_000)
    for job in jobs[60:]:
        emulator.control.finish(job["id"], "failed")
    with pytest.raises(NoukaiBatchFailedException):
        operator(inputs).execute_complete(context)
    emulator.control.script("flow", after_seconds=0.1, result_bytes=10_000)
    context["ti"].try_number = 2
    with pytest.raises(NoukaiPermanentException, match="set output_path"):
        operator(inputs).execute(context)


@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_kill(context: Any, emulator: Emulator, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs are cancelled when a user has ended the task, and left running when a worker stops."""
    emulator.control.script("flow", outcome="never")
    task_instance = context["ti"]
    task_instance.states = {task_instance.run_id: {task_instance.task_id: state}}
    task = operator(["one", "two", "three"])

    def kill(record: object, running: int) -> None:
        if len(emulator.control.jobs()) == 3:
            task.on_kill()

    monkeypatch.setattr(BatchRun, "_report_progress", lambda _, record, running: kill(record, running))
    with pytest.raises(AirflowTaskTerminated if state == "failed" else NoukaiException):
        task.execute(context)
    states = {job["state"] for job in emulator.control.jobs()}
    assert ("cancelled" in states) is (state == "failed")
    assert len(states) == 1


async def test_the_trigger(context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trigger resumes the task when its jobs have ended, by the lists of their sessions alone."""
    emulator.control.script("flow", outcome="never")
    task = operator(["one", "two", "three"], deferrable=True)
    trigger = await asyncio.to_thread(deferred, task, context)
    kind, arguments = trigger.serialize()
    assert kind == "noukai_airflow.triggers.batch.NoukaiBatchTrigger"
    await serve(monkeypatch)
    waiting = asyncio.ensure_future(anext(NoukaiBatchTrigger(**arguments).run()))
    await asyncio.to_thread(emulator.control.wait_for, "session", 2)
    assert not waiting.done()
    await asyncio.to_thread(finish_all, emulator, result=1)
    event = await waiting
    assert event.payload == {"batch_id": trigger.batch_id, "reason": "0 jobs have not ended"}
    assert emulator.control.counts().get("poll", 0) == 0


async def test_the_status_of_a_deferred_batch(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the task is deferred, its trigger keeps the XCom `batch_status` current."""
    emulator.control.script("flow", outcome="never")
    task = operator(["one", "two", "three"], deferrable=True)
    trigger = await asyncio.to_thread(deferred, task, context)
    assert context["ti"].xcoms["batch_status"]["running"] == 3
    pushed: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def push_status(_: object, key: str, status: dict[str, Any]) -> None:
        assert key == "batch_status"
        await pushed.put(status)

    await serve(monkeypatch)
    monkeypatch.setattr(batch_trigger, "PROGRESS_SECONDS", 0.05)
    monkeypatch.setattr(_task_states, "push_status", push_status)
    trigger = NoukaiBatchTrigger(**trigger.serialize()[1])
    trigger.task_instance = context["ti"]
    waiting = asyncio.ensure_future(anext(trigger.run()))
    first = await pushed.get()
    assert first == {
        "progress": "0 of 3 ended, 3 running",
        "running": 3,
        "jobs": 0,
        "counts": {},
        "tokens": 0,
        "cost_usd": "0",
        "jobs_without_cost": 0,
    }
    emulator.control.finish(emulator.control.jobs()[0]["id"], result=1)
    assert (await pushed.get())["progress"] == "1 of 3 ended, 2 running"
    await asyncio.to_thread(finish_all, emulator, result=1)
    await waiting


async def test_a_kill_of_the_trigger(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a user ends a deferred task, its trigger cancels all jobs of its sessions."""
    emulator.control.script("flow", outcome="never")
    task = operator(["one", "two", "three"], deferrable=True)
    trigger = await asyncio.to_thread(deferred, task, context)
    await serve(monkeypatch)
    await trigger.on_kill()
    await trigger.cleanup()
    jobs = await asyncio.to_thread(emulator.control.jobs)
    assert {job["state"] for job in jobs} == {"cancelled"}


def test_the_sessions_are_published(context: Any, emulator: Emulator) -> None:
    """While jobs run, the task publishes their sessions for the API server, and none when all have ended."""
    emulator.control.script("flow", outcome="never")
    task = operator(["one", "two"], deferrable=True)
    trigger = deferred(task, context)
    published = {"sessions": sorted(trigger.sessions), "flow": FLOW, "cancel_with": "noukai_default"}
    assert context["ti"].xcoms["batch_sessions"] == published
    finish_all(emulator, result=1)
    task.execute_complete(context)
    assert context["ti"].xcoms["batch_sessions"] == published | {"sessions": []}


@pytest.mark.parametrize("deferrable", [False, True])
def test_jobs_that_time_out(context: Any, emulator: Emulator, deferrable: bool) -> None:
    """A job that is left running after its time has an outcome, and the task does not wait for it again."""
    emulator.control.script("flow", outcome="never")
    task = operator(["one"], timeout=0.5, cancel_on_timeout=False, deferrable=deferrable)
    if deferrable:
        deadline = deferred(task, context).deadline
        assert deadline is not None
        time.sleep(max(0.0, deadline - time.time()))  # as the trigger does
    with pytest.raises(NoukaiBatchFailedException, match="1 timed out of 1 jobs"):
        (task.execute_complete if deferrable else task.execute)(context)
    assert [job["state"] for job in emulator.control.jobs()] == ["running"]


def test_a_batch_without_xcoms(context: Any, emulator: Emulator) -> None:
    """With `do_xcom_push=False`, a batch pushes nothing, and still returns the outputs."""
    emulator.control.script("flow", result="done")
    given: Any = {"do_xcom_push": False, "trace": True, "max_cost_usd": 5}
    assert operator(["one", "two"], **given).execute(context) == ["done", "done"]
    assert context["ti"].xcoms == {}


def test_parts_are_written_as_they_become_due(
    context: Any, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash loses no more than one part; a clear removes the files of the run before."""
    monkeypatch.setattr(batch_files, "_MAX_ROWS", 1)
    (tmp_path / "out").mkdir()
    arguments: Any = {"output_path": f"file://{tmp_path}/out", "max_concurrency": 1}
    emulator.control.script("flow", after_seconds=0)
    returned = operator(["one", "two", "three"], **arguments).execute(context)
    assert returned["parts"] == sorted(file.name for file in (tmp_path / "out").glob("part-*.jsonl"))
    assert [part[:10] for part in returned["parts"]] == ["part-00001", "part-00002", "part-00003"]
    context["ti"] = FakeTask(try_number=2, max_tries=1, run_id=context["ti"].run_id)
    operator(["four"], **arguments).execute(context)
    (part,) = (tmp_path / "out").glob("part-*.jsonl")
    (row,) = lines(part)
    assert row["output"]["message"] == "four"
