"""Where the output of a task's job goes, and which outputs the task accepts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from airflow.sdk import ObjectStoragePath

from noukai_airflow import _task_output
from noukai_airflow._storage import check_writable, storage_path
from noukai_airflow.exceptions import (
    NoukaiException,
    NoukaiJobOutputInvalidException,
    NoukaiPermanentException,
)
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_core import ExecuteResult, JobState, JobStatus, Noukai
from tests.airflow.conftest import FakeTask, MemoryStore
from tests.airflow.grades import Grade, Undefined

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/demo/flow"


pytestmark = pytest.mark.usefixtures("connected")


@pytest.fixture(params=[True, False], ids=["store", "no_store"])
def context(request: pytest.FixtureRequest, store: MemoryStore) -> Any:
    """The context that Airflow passes to a task, with its state store and without, as before Airflow 3.3."""
    return {"ti": FakeTask(max_tries=1), **({"task_state_store": store} if request.param else {})}


def operator(**arguments: Any) -> NoukaiRunJobOperator:
    return NoukaiRunJobOperator(
        task_id="task", flow=FLOW, message="Hello", poll_interval=0.05, retries=1, **arguments
    )


def submissions(emulator: Emulator) -> int:
    return emulator.control.counts().get("submit", 0)


@pytest.mark.parametrize(
    ("name", "output", "written"),
    [
        ("out.json", {"text": "Grüße"}, '{"text": "Grüße"}'),
        ("out.json", "a text", '"a text"'),
        ("out.md", "a text\n", "a text\n"),
        ("new/out.md", [1], "[1]"),
    ],
)
def test_a_file(
    context: Any, emulator: Emulator, tmp_path: Path, name: str, output: Any, written: str
) -> None:
    """The output is in the file, and the task returns where, how large it is, and the job."""
    emulator.control.script("flow", result=output)
    uri = f"file://{tmp_path}/{name}"
    returned = operator(output_path=uri).execute(context)
    (job,) = emulator.control.jobs()
    assert returned == {"uri": uri, "bytes": len(written.encode()), "job_id": job["id"]}
    assert (tmp_path / name).read_text(encoding="utf-8") == written
    assert [file.name for file in (tmp_path / name).parent.iterdir()] == [Path(name).name]


def test_a_file_is_json(tmp_path: Path) -> None:
    """NaN, which a server may send, is null in the file, so that every reader takes it."""
    with Noukai("nk_test_key") as client:
        job = client.flow(FLOW).attach("job-1")
        result = ExecuteResult(output=[float("nan"), 1])
        status = JobStatus(id=job.id, state=JobState.COMPLETED, result=result)
        _task_output.TaskOutput(output_path=f"file://{tmp_path}/out.json").deliver(job, status)
    assert (tmp_path / "out.json").read_text() == "[null, 1]"


@pytest.mark.parametrize(
    "path",
    [
        "/tmp/out.json",
        "nothing://bucket/out.json",
        "file:///proc/no/out.json",
        "file:///tmp",
        "file:///tmp/",
        f"file:///tmp/{'n' * 256}",
        "file:///tmp/o\0ut.json",
        "file:///tmp/\ud800.json",
        7,
        Path("/tmp/out.json"),
        ObjectStoragePath("/tmp/out.json"),
    ],
)
def test_a_file_that_cannot_be_written(context: Any, emulator: Emulator, path: Any) -> None:
    """A path that cannot be written is reported before anything is paid for."""
    with pytest.raises(NoukaiPermanentException, match="output_path"):
        operator(output_path=path).execute(context)
    assert submissions(emulator) == 0


def test_a_file_with_the_longest_name(context: Any, emulator: Emulator, tmp_path: Path) -> None:
    """A name that the file system allows is one that an output can have."""
    name = "n" * (os.pathconf(tmp_path, "PC_NAME_MAX") - len(".json")) + ".json"
    operator(output_path=f"file://{tmp_path}/{name}").execute(context)
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "uri", ["file://school/out.json", "file://localhost/tmp/out.json", "file://out.json"]
)
def test_a_file_below_the_working_directory(
    context: Any, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    """A URI with two slashes, which Airflow takes for a relative path, is refused, and makes no folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoukaiPermanentException, match=r"names '.+' as a host: .* file:///"):
        operator(output_path=uri).execute(context)
    assert (list(tmp_path.iterdir()), submissions(emulator)) == ([], 0)


@pytest.mark.parametrize("conn_id", [None, "of_the_path"])
def test_a_path_of_airflow(context: Any, emulator: Emulator, tmp_path: Path, conn_id: str | None) -> None:
    """An `ObjectStoragePath` is as good as its URI, and its templates are rendered."""
    path = ObjectStoragePath(f"file://{tmp_path}", conn_id=conn_id) / "{{ run_id }}.json"
    task = operator(output_path=path)
    task.render_template_fields({"run_id": "monday"})  # type: ignore[typeddict-item]
    user = "" if conn_id is None else f"{conn_id}@"
    assert task.execute(context)["uri"] == f"file://{user}{tmp_path}/monday.json"
    assert (tmp_path / "monday.json").exists()


@pytest.mark.parametrize(
    ("location", "conn_id", "used"),
    [
        (ObjectStoragePath("file:///tmp/x", conn_id="of_the_path"), None, "of_the_path"),
        (ObjectStoragePath("file:///tmp/x", conn_id="of_the_path"), "of_the_task", "of_the_path"),
        (ObjectStoragePath("file:///tmp/x"), "of_the_task", "of_the_task"),
        ("file://of_the_uri@/tmp/x", None, "of_the_uri"),
        ("file:///tmp/x", None, None),
    ],
)
def test_the_connection_of_a_storage(location: Any, conn_id: str | None, used: str | None) -> None:
    """An `ObjectStoragePath` and a URI keep the connection that they name; the task's is for others."""
    path = storage_path(location, conn_id, "output_path")
    assert (path.serialize()["conn_id"], path.path) == (used, "/tmp/x")


def test_a_storage_that_fails_at_the_end(
    context: Any, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file cannot be written when the job has ended, a retry writes it, without another job."""

    def full(path: object, text: str) -> int:
        raise OSError("no space left")

    target = tmp_path / "out.json"
    task = operator(output_path=f"file://{target}")
    with monkeypatch.context() as patched:
        patched.setattr(_task_output, "write_text", full)
        with pytest.raises(NoukaiException, match="cannot be written: no space left"):
            task.execute(context)
    context["ti"].try_number = 2
    assert task.execute(context)["bytes"] == target.stat().st_size
    assert len(emulator.control.jobs()) == 1


def test_a_storage_that_fails_until_the_retry(
    context: Any, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a storage is out of order, a retry that attaches to its job fails no more than that retry."""
    target = tmp_path / "out.json"
    task = operator(output_path=f"file://{target}")
    fail = Mock(side_effect=OSError(5, "service unavailable"))
    with monkeypatch.context() as patched:
        patched.setattr(ObjectStoragePath, "write_text", fail)
        with pytest.raises(NoukaiException, match="service unavailable") as raised:
            task.execute(context)
        assert not isinstance(raised.value, NoukaiPermanentException)
        assert submissions(emulator) == 0
    context["ti"].try_number = 2
    with monkeypatch.context() as patched:
        patched.setattr(ObjectStoragePath, "write_bytes", fail)
        with pytest.raises(NoukaiException, match="A retry tries again"):
            task.execute(context)
    context["ti"].try_number = 3
    if "task_state_store" in context:  # else the retry may have to submit, and checks the storage again
        monkeypatch.setattr(ObjectStoragePath, "write_text", fail)
    assert task.execute(context)["bytes"] == target.stat().st_size
    assert submissions(emulator) == 1


def test_a_typed_output(context: Any, emulator: Emulator, tmp_path: Path) -> None:
    """An output of the type is returned with its defaults, and written so."""
    emulator.control.script("flow", result={"points": 3, "more": 1})
    assert operator(output_type=Grade).execute(context) == {"points": 3, "comment": "none"}
    operator(output_type=Grade, output_path=f"file://{tmp_path}/out.json").execute(
        context | {"ti": FakeTask(task_id="another")}
    )
    assert json.loads((tmp_path / "out.json").read_text()) == {"points": 3, "comment": "none"}


def test_an_output_of_another_type(context: Any, emulator: Emulator) -> None:
    """An output that is not of the type fails the task, and the retry submits a new job."""
    emulator.control.script("flow", result={"points": "many"})
    with pytest.raises(NoukaiJobOutputInvalidException, match=r"points: .*integer") as raised:
        operator(output_type=Grade).execute(context)
    (job,) = emulator.control.jobs()
    assert (raised.value.job_id, raised.value.fields) == (job["id"], ("points",))
    emulator.control.script("flow", result={"points": 3})
    context["ti"].try_number = 2
    assert operator(output_type=Grade).execute(context)["points"] == 3
    assert submissions(emulator) == 2


def test_a_type_that_cannot_be_built(context: Any, emulator: Emulator) -> None:
    """A model without one of its types fails the task before anything is submitted, and no retry helps."""
    with pytest.raises(NoukaiPermanentException, match=r"output_type Undefined cannot be built: .*Missing"):
        operator(output_type=Undefined).execute(context)
    assert submissions(emulator) == 0


def test_tasks_that_check_one_folder_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that a folder can be written does not fail because another task checks it."""
    folder, unlink = ObjectStoragePath(f"file://{tmp_path}"), ObjectStoragePath.unlink

    def after_another(path: ObjectStoragePath) -> None:
        monkeypatch.setattr(ObjectStoragePath, "unlink", unlink)
        check_writable(folder)
        path.unlink()

    monkeypatch.setattr(ObjectStoragePath, "unlink", after_another)
    check_writable(folder)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_its_type_cannot_write(context: Any, emulator: Emulator) -> None:
    """An output that the model cannot write as JSON fails the task, and the retry submits a new job."""
    emulator.control.script("flow", result={"points": 3, "comment": "unwritable"})
    with pytest.raises(NoukaiJobOutputInvalidException, match=r"Grade\.model_dump raised") as raised:
        operator(output_type=Grade).execute(context)
    assert "hunter2" not in str(raised.value)
    emulator.control.script("flow", result={"points": 3})
    context["ti"].try_number = 2
    assert operator(output_type=Grade).execute(context)["points"] == 3
    assert submissions(emulator) == 2


def test_a_type_that_was_corrected(context: Any, emulator: Emulator) -> None:
    """A retry with a type that accepts the output takes it, and submits nothing."""
    emulator.control.script("flow", result={"score": 3})
    with pytest.raises(NoukaiJobOutputInvalidException, match="points: Field required"):
        operator(output_type=Grade).execute(context)
    context["ti"].try_number = 2
    assert operator().execute(context) == {"score": 3}
    # Without a store, the submission is sent again, and the server knows it.
    assert len(emulator.control.jobs()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_type": dict}, "output_type is <class 'dict'>, but must be a pydantic model"),
        ({"output_type": Grade, "wait_for_completion": False}, "need wait_for_completion"),
        ({"output_path": "file:///tmp/x", "wait_for_completion": False}, "need wait_for_completion"),
    ],
)
def test_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    """Arguments that make no sense are refused when the DAG is parsed."""
    with pytest.raises(ValueError, match=message):
        operator(**arguments)
