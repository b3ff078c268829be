"""What a batch can do beyond a list: files, generators, a storage, a stream, limits."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import concurrency
from prefect.filesystems import LocalFileSystem, WritableFileSystem
from pydantic import BaseModel, Field, field_serializer

from noukai_core import InvalidInputError, JobFailedError, JobRequest, batch_files
from noukai_core.batch_files import read_inputs, shown_reason
from noukai_core.batch_record import BatchRecord
from noukai_prefect import (
    NoukaiCredentials,
    _artifacts,
    _batch_output,
    _batch_record,
    arun_noukai_jobs,
    stream_noukai_jobs,
)
from noukai_prefect._batch_inputs import BatchInputs

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/spelling/grade-3"
STEP = {"tokens": {"total": 10}, "costUsd": "0.25"}


def scripted(message: str, **script: Any) -> dict[str, Any]:
    """Return an input with a script for its job."""
    return {"message": message, "key": message, "parameters": {"_emulator": script}}


def jsonl(folder: Path, *lines: Any) -> Path:
    """Return a file with inputs."""
    path = folder / "inputs.jsonl"
    path.write_text("".join(f"{line if isinstance(line, bytes) else json.dumps(line)}\n" for line in lines))
    return path


def read(manifest: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    """Return the rows of files of outcomes."""
    texts = [(Path(manifest["output_path"]) / name).read_text() for name in names]
    return [json.loads(line) for text in texts for line in text.splitlines()]


async def test_files(credentials: NoukaiCredentials, emulator: Emulator, tmp_path: Path) -> None:
    """The lines of a JSONL file and the rows of a CSV file are inputs, named by a path or by a URI."""
    path = jsonl(tmp_path, "a", {"message": "b", "key": "k"})
    table = tmp_path / "inputs.csv"
    table.write_text("message,grade\nc,3\n")
    found = [
        [
            (outcome.output["message"], outcome.key)
            for outcome in await arun_noukai_jobs(credentials, FLOW, given)
        ]
        for given in (path, path.as_uri(), str(table))
    ]
    assert found == [[("a", None), ("b", "k")]] * 2 + [[("c", None)]]
    assert emulator.control.jobs()[-1]["parameters"] == {"grade": "3"}


@pytest.mark.parametrize(
    ("lines", "reported"),
    [
        (["good", b"{"], r"inputs.jsonl, line 2: no JSON"),
        (["good", 7], r"inputs.jsonl, line 2: neither a text nor an object"),
        (["good", {"massage": "a"}], r"line 2 has massage, but may"),
        ([], r"inputs.jsonl is empty"),
    ],
)
async def test_a_bad_line_is_named_before_anything_is_sent(
    credentials: NoukaiCredentials, emulator: Emulator, tmp_path: Path, lines: list[Any], reported: str
) -> None:
    """A file is read once before the first job, so that a bad line costs nothing."""
    path = tmp_path / "inputs.jsonl"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    with pytest.raises(InvalidInputError, match=reported):
        await arun_noukai_jobs(credentials, FLOW, path)
    assert emulator.control.requests() == []


async def test_a_secret_in_a_uri_is_not_shown(tmp_path: Path) -> None:
    """Errors name a file without the query and the user of its URI, and its ending is the path's."""
    missing = f"file://{tmp_path}/inputs.csv?sig=hunter2"
    closed = "https://user:hunter2@127.0.0.1:1/inputs.jsonl?sig=hunter2"
    for uri in ("https://user:hunter2@example.org/inputs.txt?sig=hunter2&name=.csv", missing, closed):
        with pytest.raises(InvalidInputError, match=r"inputs\.(txt|csv|jsonl)") as raised:
            await BatchInputs(FLOW, uri, "production", False).check()
        assert "hunter2" not in str(raised.value)
        assert raised.value.__cause__ is None
    with pytest.raises(InvalidInputError, match=r"^inputs s3://bucket/in\.csv, line 2: a row") as raised:
        list(read_inputs(["message\n", "a,b\n"], "s3://key:hunter2@bucket/in.csv?sig=hunter2"))
    reason = shown_reason(
        ValueError("404, url='https://host/in.csv?sig=hunter2%20' of sftp://me:hunter2@host/x"), "in"
    )
    assert reason == "404, url='https://host/in.csv' of sftp://host/x"


async def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    """The same bytes are the same batch, whenever and wherever they were written."""
    contents: list[Any] = []
    for folder, message in (("one", "a"), ("two", "a"), ("three", "b")):
        (tmp_path / folder).mkdir()
        path = jsonl(tmp_path / folder, message)
        os.utime(path, (len(contents), len(contents)))
        inputs = BatchInputs(FLOW, path, "production", False)
        await inputs.check()
        contents.append(inputs.content)
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_another_version_is_another_batch() -> None:
    """What came of a draft's jobs is never taken for what came of production's, nor without a trace."""
    given = [("production", False), ("draft", False), ("production", True), (3, False)]
    contents = [BatchInputs(FLOW, iter("a"), version, trace).content for version, trace in given]
    assert len({json.dumps(content) for content in contents}) == len(given)
    assert contents[0] == BatchInputs(FLOW, iter("b"), "production", False).content


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_set_is_refused(kind: type[Any]) -> None:
    """A set has another order in each process, so a rerun could not tell which job is for which input."""
    with pytest.raises(InvalidInputError, match=f"inputs is a {kind.__name__}, whose order differs"):
        BatchInputs(FLOW, kind("ab"), "production", False)


def plain() -> Iterator[str]:
    yield from ("a", "b")


async def asynchronous() -> AsyncIterator[str]:
    for message in ("a", "b"):
        yield message


@pytest.mark.parametrize("generator", [plain, asynchronous])
async def test_generators(credentials: NoukaiCredentials, generator: Callable[[], Any]) -> None:
    """A generator is read as jobs go out; an empty one is an error."""
    outcomes = await arun_noukai_jobs(credentials, FLOW, generator())
    assert [outcome.output["message"] for outcome in outcomes] == ["a", "b"]
    with pytest.raises(InvalidInputError, match="nothing to read"):
        await arun_noukai_jobs(credentials, FLOW, iter(()))


async def test_a_cost_cap(credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """Once the jobs that have ended cost enough, nothing more is submitted."""
    emulator.control.script("grade-3", steps=[STEP])
    outcomes = await arun_noukai_jobs(
        credentials, FLOW, ["a"] * 9, trace=True, max_cost_usd=0.5, max_concurrency=1, raise_on="none"
    )
    states = [outcome.state.value for outcome in outcomes]
    assert states[:2] == ["completed"] * 2
    assert states.count("not_submitted") == 9 - emulator.control.counts()["submit"]
    assert "not_submitted" in states


async def test_output_storage(credentials: NoukaiCredentials, emulator: Emulator, tmp_path: Path) -> None:
    """Outcomes go to files, in the form of every orchestrator, and the return value is a manifest."""
    inputs = [
        scripted("good", steps=[STEP]),
        scripted("bad", outcome="failed", error="no luck", steps=[STEP]),
    ]
    manifest = await arun_noukai_jobs(
        credentials,
        FLOW,
        inputs,
        trace=True,
        output_storage=LocalFileSystem(basepath=str(tmp_path)),
        raise_on="none",
    )
    assert (manifest["jobs"], manifest["counts"]) == (2, {"completed": 1, "failed": 1})
    assert (manifest["tokens"], manifest["cost_usd"]) == (20, "0.50")
    assert manifest["seconds"] >= 0
    (good,), (bad,) = read(manifest, *manifest["parts"]), read(manifest, "failed.jsonl")
    assert set(good) == {
        "index",
        "key",
        "state",
        "output",
        "error",
        "job_id",
        "tokens",
        "cost_usd",
        "seconds",
    }
    assert (good["key"], good["state"], good["output"]["message"]) == ("good", "completed", "good")
    assert (bad["index"], bad["error"]) == (1, "no luck")


async def test_storage_that_cannot_be_written(
    credentials: NoukaiCredentials, emulator: Emulator, tmp_path: Path
) -> None:
    """A storage that cannot be written, or is none, is an error before anything is sent."""
    occupied = tmp_path / "file"
    occupied.write_text("")
    for block, reported in (
        (LocalFileSystem(basepath=str(occupied)), "cannot be written"),
        ("x", "is a str"),
    ):
        with pytest.raises(InvalidInputError, match=reported):
            await arun_noukai_jobs.fn(credentials, FLOW, ["a"], output_storage=block)
    assert emulator.control.counts()["submit"] == 0


@pytest.mark.usefixtures("prefect_server")
async def test_a_rerun_continues_in_the_storage(
    credentials: NoukaiCredentials, emulator: Emulator, tmp_path: Path
) -> None:
    """A rerun writes what is missing: it neither fetches nor submits again what the files have."""
    inputs = [scripted("good"), scripted("bad", outcome="failed"), scripted("also good")]
    manifests: list[Any] = []

    @flow(retries=1)
    async def batch() -> None:
        storage = LocalFileSystem(basepath=str(tmp_path))
        manifests.append(
            await arun_noukai_jobs(credentials, FLOW, inputs, output_storage=storage, raise_on="none")
        )
        if len(manifests) == 1:
            raise ValueError("once more")

    await batch()
    first, second = manifests
    assert first["counts"] == second["counts"] == {"completed": 2, "failed": 1}
    assert first["output_path"] == second["output_path"]
    assert emulator.control.counts()["submit"] == 4
    assert sorted(row["index"] for row in read(second, *second["parts"])) == [0, 2]
    assert [row["index"] for row in read(second, "failed.jsonl")] == [1]
    polled = [emulator.control.counts(job["id"])["poll"] for job in emulator.control.jobs()]
    assert polled[0] == 1


def crash(*_: Any) -> None:
    """End like a process that is killed here."""
    raise RuntimeError("killed")


class FaultyStorage(WritableFileSystem):
    """A storage that cannot be read for a while. It raises one type of error, as some do."""

    files: dict[str, bytes] = Field(default_factory=dict)
    faulty: bool = False

    async def read_path(self, path: str) -> bytes:
        if self.faulty and path in self.files:
            raise ValueError(f"{path}: slow down\nrequest {uuid4()}")
        if path not in self.files:
            raise ValueError(f"{path}: no such file\nrequest {uuid4()}")
        return self.files[path]

    async def write_path(self, path: str, content: bytes) -> None:
        self.files[path] = content


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("left", ["all of it", "half of it", "nothing"])
async def test_a_crash_while_a_part_is_written(
    credentials: NoukaiCredentials, emulator: Emulator, left: str
) -> None:
    """A rerun lets a part count that is written, or else writes its jobs again: each is there once."""
    storage, manifests, polled = FaultyStorage(), list[Any](), list[int]()

    @flow(retries=1)
    async def batch() -> None:
        if polled:
            manifests.append(await arun_noukai_jobs(credentials, FLOW, ["a", "b"], output_storage=storage))
            return
        with pytest.MonkeyPatch.context() as patch, suppress(RuntimeError):
            patch.setattr(BatchRecord, "end_part", crash)
            await arun_noukai_jobs.fn(credentials, FLOW, ["a", "b"], output_storage=storage)
        (name,) = (name for name in storage.files if "part-" in name)
        if left == "nothing":
            del storage.files[name]
        elif left == "half of it":
            storage.files[name] = storage.files[name][:-20]
        polled.append(emulator.control.counts()["poll"])
        raise ValueError("once more")

    await batch()
    texts = [content.decode() for name, content in storage.files.items() if "part-" in name]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    assert sorted(row["index"] for row in rows) == [0, 1]
    assert manifests[0]["counts"] == {"completed": 2}
    listed = [storage.files[name] for name in storage.files if name.endswith(tuple(manifests[0]["parts"]))]
    assert sum(content.count(b"\n") for content in listed) == 2
    counts = emulator.control.counts()
    assert counts["submit"] == 2
    assert (counts["poll"] == polled[0]) == (left == "all of it")


@pytest.mark.usefixtures("prefect_server")
async def test_a_part_that_cannot_be_read(credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """Nobody knows whether its jobs are written: nothing is sent, and a later rerun lets it count."""
    storage, errors, manifests = FaultyStorage(), list[str](), list[Any]()

    @flow(retries=2)
    async def batch() -> None:
        storage.faulty = len(errors) == 1
        with pytest.MonkeyPatch.context() as patch:
            if not errors:
                patch.setattr(BatchRecord, "end_part", crash)
            try:
                manifests.append(await arun_noukai_jobs.fn(credentials, FLOW, ["a"], output_storage=storage))
            except (RuntimeError, InvalidInputError) as error:
                errors.append(str(error))
                raise

    await batch()
    assert re.search(r"part-00001-\w+\.jsonl cannot be read.*slow down", errors[1])
    assert "Nothing was submitted" in errors[1]
    assert manifests[0]["counts"] == {"completed": 1}
    assert len(manifests[0]["parts"]) == sum("part-" in name for name in storage.files) == 1
    assert emulator.control.counts()["submit"] == 1


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("second", ["another storage", "no storage"])
async def test_a_rerun_with_another_storage(
    credentials: NoukaiCredentials, emulator: Emulator, tmp_path: Path, second: str
) -> None:
    """A rerun that would lose what earlier attempts have written is an error before anything is sent."""
    inputs = [scripted("good"), scripted("bad", outcome="failed")]
    storages: list[Any] = [
        LocalFileSystem(basepath=str(tmp_path / "first")),
        LocalFileSystem(basepath=str(tmp_path / "second")) if second == "another storage" else None,
        LocalFileSystem(basepath=str(tmp_path / "first")),
    ]
    errors: list[str] = []

    @flow(retries=2)
    async def batch() -> Any:
        try:
            return await arun_noukai_jobs(credentials, FLOW, inputs, output_storage=storages.pop(0))
        except Exception as error:
            errors.append(str(error))
            counts.append(emulator.control.counts()["submit"])
            raise

    counts: list[int] = []
    with pytest.raises(ExceptionGroup, match="1 of 1 Noukai jobs"):
        await batch()
    assert "earlier attempts wrote the outcomes of 1 completed jobs to an output_storage" in errors[1]
    assert not (tmp_path / "second").exists()
    assert counts == [2, 2, 3]


class Grade(BaseModel):
    """An output that cannot always be written as JSON."""

    message: str

    @field_serializer("message")
    def _serialized(self, message: str) -> str:
        if message == "bad":
            raise ValueError("hunter2")
        return message


@pytest.mark.usefixtures("prefect_server")
async def test_an_output_that_cannot_be_written(
    credentials: NoukaiCredentials, emulator: Emulator, tmp_path: Path
) -> None:
    """An output whose model cannot write it is that input's outcome, and a rerun submits another job."""
    manifests: list[Any] = []

    @flow(retries=1)
    async def batch() -> None:
        storage = LocalFileSystem(basepath=str(tmp_path))
        inputs = ["good", "bad"]
        options: Any = {"output_storage": storage, "output_type": Grade, "raise_on": "none"}
        manifests.append(await arun_noukai_jobs(credentials, FLOW, inputs, **options))
        if len(manifests) == 1:
            raise ValueError("once more")

    await batch()
    assert [manifest["counts"] for manifest in manifests] == [{"completed": 1, "invalid_output": 1}] * 2
    (row,) = read(manifests[1], "failed.jsonl")
    assert (row["index"], row["output"]) == (1, None)
    assert "Grade.model_dump raised" in row["error"]
    assert "hunter2" not in row["error"]
    assert emulator.control.counts()["submit"] == 3


class HangingStorage(WritableFileSystem):
    """A storage whose writes end only for the first files."""

    written: int = 0
    ends: int = 0

    async def read_path(self, path: str) -> bytes:
        raise ValueError(path)

    async def write_path(self, path: str, content: bytes) -> None:
        self.written += 1
        if self.written > self.ends:
            await asyncio.Event().wait()


class BlockingStorage(WritableFileSystem):
    """A storage whose methods are no coroutines, and may block."""

    files: dict[str, str] = Field(default_factory=dict)

    def read_path(self, path: str) -> bytes:  # type: ignore[override]
        return self.files[path].encode()

    def write_path(self, path: str, content: bytes) -> None:  # type: ignore[override]
        asyncio.run(asyncio.sleep(0))  # fails where an event loop runs
        self.files[path] = content.decode()


async def test_a_storage_that_blocks(
    credentials: NoukaiCredentials, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage that is not asynchronous works, on a thread, and gets a part as soon as it is due."""
    monkeypatch.setattr(batch_files, "_MAX_ROWS", 1)
    storage = BlockingStorage()
    await arun_noukai_jobs(credentials, FLOW, ["a", "b"], max_concurrency=1, output_storage=storage)
    names = sorted(path.rpartition("/")[2] for path in storage.files)
    assert names[:2] == ["batch.json", "failed.jsonl"]
    assert [name[:10] for name in names[2:]] == ["part-00001", "part-00002"]


@pytest.mark.parametrize(("ends", "error"), [(0, InvalidInputError), (1, TimeoutError)])
async def test_a_storage_that_hangs(
    credentials: NoukaiCredentials,
    monkeypatch: pytest.MonkeyPatch,
    ends: int,
    error: type[Exception],
) -> None:
    """A write that does not end is an error that names the file."""
    monkeypatch.setattr(_batch_output, "MAX_SECONDS", 0.5)
    name = r"part-00001-\w+\.jsonl" if ends else r"batch\.json"
    with pytest.raises(error, match=f"{name}: no response within 0.5 s"):
        await arun_noukai_jobs(credentials, FLOW, ["a"], output_storage=HangingStorage(ends=ends))


async def test_a_stream(credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """Outcomes come as their jobs end, and one that did not complete raises nothing."""
    inputs = [scripted("slow", after_seconds=2), scripted("quick"), scripted("bad", outcome="failed")]
    outcomes = [outcome async for outcome in stream_noukai_jobs(credentials, FLOW, inputs)]
    assert outcomes[-1].key == "slow"
    assert {outcome.state.value for outcome in outcomes} == {"completed", "failed"}


async def test_a_stream_that_is_left(credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """A flow that leaves the loop early leaves the other jobs running."""
    inputs = [scripted("quick"), scripted("endless", outcome="never")]
    async with aclosing(stream_noukai_jobs(credentials, FLOW, inputs)) as outcomes:
        async for _ in outcomes:
            break
    assert sorted(job["state"] for job in emulator.control.jobs())[0] == "completed"
    assert emulator.control.counts()["cancel"] == 0


@pytest.fixture
async def limit(prefect_server: None) -> AsyncIterator[str]:
    """A global concurrency limit of three."""
    name = f"noukai-{uuid4().hex}"
    async with get_client() as client:
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=3))
        yield name
        limit = await client.read_global_concurrency_limit_by_name(name)
        assert limit.active_slots == 0


async def test_a_global_concurrency_limit(
    credentials: NoukaiCredentials, emulator: Emulator, limit: str
) -> None:
    """No more jobs run than the limit has slots, and all slots are given back."""
    emulator.control.script("grade-3", after_seconds=0.5)
    running: list[int] = []

    async def inputs() -> AsyncIterator[str]:
        for number in range(8):
            yield f"m{number}"
            running.append(sum(job["state"] in ("pending", "running") for job in emulator.control.jobs()))

    outcomes = await arun_noukai_jobs(credentials, FLOW, inputs(), concurrency=limit)
    assert [outcome.state.value for outcome in outcomes] == ["completed"] * 8
    assert max(running) <= 3


async def test_the_slots_of_others(credentials: NoukaiCredentials, emulator: Emulator, limit: str) -> None:
    """A batch that is stopped while others hold all slots takes none afterwards."""
    async with concurrency(limit, occupy=3):
        batch = asyncio.ensure_future(arun_noukai_jobs.fn(credentials, FLOW, ["a"], concurrency=limit))
        await asyncio.wait([batch], timeout=2)
        batch.cancel()
        with suppress(asyncio.CancelledError):
            await batch
    assert emulator.control.counts()["submit"] == 0


async def test_a_limit_that_allows_nothing(
    credentials: NoukaiCredentials, emulator: Emulator, prefect_server: None
) -> None:
    """A limit of 0 would never let a job run: it is an error, and nothing is sent."""
    name = f"noukai-{uuid4().hex}"
    async with get_client() as client:
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=0))
    with pytest.raises(InvalidInputError, match="no job could ever run"):
        await arun_noukai_jobs.fn(credentials, FLOW, ["a"], concurrency=name)
    assert emulator.control.requests() == []


async def test_requests_as_inputs(credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """An input that is a `JobRequest` is submitted with what it asks for itself."""
    inputs = [JobRequest(FLOW, "mine", version="draft"), "other"]
    await arun_noukai_jobs(credentials, FLOW, inputs, version=3)
    submitted = {job["message"]: job["version"] for job in emulator.control.jobs()}
    assert submitted == {"mine": "draft", "other": 3}


async def test_the_first_error(credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """With `raise_on="first"`, the first job that does not complete ends the batch, and no other job."""
    inputs = [scripted("bad", outcome="failed", error="no luck"), scripted("endless", outcome="never")]
    with pytest.raises(JobFailedError, match="no luck"):
        await arun_noukai_jobs.fn(credentials, FLOW, inputs, raise_on="first")
    assert sorted(job["state"] for job in emulator.control.jobs())[0] == "failed"
    assert emulator.control.counts()["cancel"] == 0


@pytest.mark.usefixtures("prefect_server")
async def test_a_long_record(
    credentials: NoukaiCredentials, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that takes several artifacts is read in whole by a rerun, which submits nothing again."""
    monkeypatch.setattr(_batch_record, "_CHUNK_CHARACTERS", 1)
    monkeypatch.setattr(_artifacts, "_PAGE_SIZE", 2)
    attempts: list[Any] = []

    @flow(retries=1)
    async def batch() -> None:
        attempts.append(await arun_noukai_jobs(credentials, FLOW, ["a", "b", "c"]))
        if len(attempts) == 1:
            raise ValueError("once more")

    await batch()
    first, second = attempts
    assert [outcome.job_id for outcome in first] == [outcome.job_id for outcome in second]
    assert emulator.control.counts()["submit"] == 3


@pytest.mark.usefixtures("prefect_server")
async def test_a_limit_that_does_not_exist(credentials: NoukaiCredentials, emulator: Emulator) -> None:
    """A limit that Prefect does not know is an error, and nothing is sent."""
    with pytest.raises(InvalidInputError, match="no global concurrency limit of that name"):
        await arun_noukai_jobs(credentials, FLOW, ["a"], concurrency="nowhere")
    assert emulator.control.requests() == []
