"""One job for each line of a file, as one task. The outcomes are written next to the file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from airflow.sdk import dag, task

from noukai_airflow.operators.batch import NoukaiRunJobsOperator

FOLDER = f"{tempfile.gettempdir()}/noukai-essays"


@dag(schedule=None, tags=["noukai"])
def noukai_batch() -> None:
    @task
    def essays(run_id: str | None = None) -> str:
        path = Path(FOLDER) / str(run_id) / "essays.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"key": f"pupil {n}", "message": f"My holidays, part {n}"} for n in range(50)]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return path.as_uri()

    grade = NoukaiRunJobsOperator(
        task_id="grade",
        flow="acme/essays/grade",
        inputs=essays(),  # type: ignore[arg-type]
        output_path=f"file://{FOLDER}/{{{{ run_id }}}}/grades",
        max_concurrency=50,
        fail_on=0.05,
        deferrable=True,
    )

    @task
    def report(manifest: dict[str, object]) -> str:
        return f"{manifest['counts']} in {manifest['output_path']}"

    report(grade.output)


noukai_batch()
