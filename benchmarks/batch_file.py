"""Many inputs from a JSONL file with `flow.jobs`, killed in the middle and run again.

    .venv/airflow/bin/python benchmarks/batch_file.py [--inputs 100000] [--bytes 2000] [--at-once 2000]

Is memory flat, and is a job lost or submitted twice? The file has inputs of so many bytes, and each job takes
a second. The process that runs the batch records it in files, as the tasks of both orchestrators do, and is
killed with SIGKILL when half of the outcomes are there. A second one goes on: what was in no file yet is
fetched again, and a submission that the kill interrupted is decided after the recovery window of a minute.
The table has what the process takes (memory that it shares with no other, in MB) at each tenth of the
outcomes, and at the end how many submissions the local Noukai has seen, and how many inputs have an outcome.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from local_services import local_noukai

from noukai_core import AsyncNoukai
from noukai_core.batch_files import OutcomePart, read_inputs
from noukai_core.batch_record import BatchRecord, Row
from noukai_core.emulator import EmulatorControl

FLOW = "acme/essays/grade"
BATCH = UUID(int=7)


class Folder:
    """The record and the outcomes of the batch, as files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "record.jsonl"
        self.log.touch()

    def record(self) -> BatchRecord:
        """Load what an earlier process has recorded."""
        with self.log.open(encoding="utf-8") as lines:
            rows = (row for line in lines if (row := _parsed(line)) is not None)
            record = BatchRecord.load(rows, self._append, retried=False)
        for name in list(record.begun_parts):
            if (part := self.path / name).exists():
                record.adopt_part(name, part.read_bytes())
        return record

    async def _append(self, rows: list[Row]) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write("".join(f"{json.dumps(row)}\n" for row in rows))

    def write(self, part: OutcomePart) -> None:
        """Write completed jobs."""
        (self.path / part.name).write_text(part.text, encoding="utf-8")

    def outcomes(self) -> list[int]:
        """Return the inputs of all outcomes."""
        files = sorted(self.path.glob("part-*.jsonl"))
        return [json.loads(line)["index"] for file in files for line in file.read_text().splitlines()]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # cut off by the kill
        return None


async def run(base_url: str, folder: Folder, inputs: Path, most: int, every: int) -> None:
    """Run the batch, and print how much memory the process has at each so many outcomes."""
    record = folder.record()
    part, number, process = OutcomePart(len(record.parts)), sum(record.counts.values()), psutil.Process()
    async with AsyncNoukai("nk_test_key", base_url=base_url, max_polls_per_second=100_000) as client:
        with inputs.open(encoding="utf-8") as lines:
            batch = client.flow(FLOW).jobs(
                read_inputs(lines, inputs.name), max_concurrency=most, ledger=record, batch_id=BATCH
            )
            async for outcome in batch:
                part.add(record.add(outcome, keep_output=False))
                number += 1
                if part.is_due():
                    await record.begin_part(part)
                    folder.write(part)
                    record.end_part(part)
                    part = part.following()
                if number % every == 0:
                    memory = process.memory_full_info().uss / 2**20
                    print(json.dumps({"outcomes": number, "memory": memory}), flush=True)
    await record.begin_part(part)
    folder.write(part)
    record.end_part(part)
    await record.store()


def follow(command: list[str], kill_at: int | None) -> None:
    """Run the process, print its lines, and kill it when it has so many outcomes."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        seen = json.loads(line)
        print(f"{seen['outcomes']:9,} {seen['memory']:7.1f} {time.monotonic() - started:8.0f}", flush=True)
        if kill_at is not None and seen["outcomes"] >= kill_at:
            process.send_signal(signal.SIGKILL)
            break
    if (code := process.wait()) not in (0, -signal.SIGKILL):
        raise SystemExit(f"the batch ended with {code}")


def main() -> None:
    """Run the batch twice, and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, default=2000, help="of each input")
    parser.add_argument("--at-once", type=int, default=2000)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    every = given.inputs // 10
    if given.run:
        base_url, path = given.run
        folder = Path(path)
        asyncio.run(run(base_url, Folder(folder), folder / "inputs.jsonl", given.at_once, every))
        return
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        with (folder / "inputs.jsonl").open("w") as file:
            for number in range(given.inputs):
                message = f"{number} ".ljust(given.bytes, "x")
                script = {"_emulator": {"after_seconds": 1}}
                file.write(json.dumps({"message": message, "parameters": script}) + "\n")
        with local_noukai() as base_url:
            command = [sys.executable, __file__, "--run", base_url, path]
            command += ["--inputs", str(given.inputs), "--at-once", str(given.at_once)]
            print(f"{'outcomes':>9} {'MB':>7} {'seconds':>8}")
            follow(command, given.inputs // 2)
            print("killed")
            follow(command, None)
            outcomes, jobs = Folder(folder).outcomes(), EmulatorControl(base_url).counts()["submit"]
            print(f"{jobs:,} submissions, {len(outcomes):,} outcomes of {len(set(outcomes)):,} inputs")


if __name__ == "__main__":
    main()
