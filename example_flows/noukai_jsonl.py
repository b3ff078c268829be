"""From a JSONL file to JSONL files: neither inputs nor outputs have to fit into memory."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.filesystems import LocalFileSystem

from noukai_prefect import NoukaiCredentials, run_noukai_jobs


@flow
def noukai_jsonl(path: str | None = None, folder: str | None = None) -> dict[str, Any]:
    folder = folder or tempfile.mkdtemp()
    return run_noukai_jobs(
        NoukaiCredentials.load("default"),
        "acme/spelling/grade-3",
        path or example_file(folder),
        output_storage=LocalFileSystem(basepath=folder),  # or S3Bucket, GcsBucket, …
        raise_on="none",
    )


def example_file(folder: str) -> str:
    path = Path(folder) / "essays.jsonl"
    lines = [{"message": f"text {number}", "key": f"essay-{number}"} for number in range(20)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)
