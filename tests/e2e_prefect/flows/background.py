"""Background tasks, and a flow that waits for one.

As a script, `background.py TASK NOUKAI_FLOW COUNT` delays a task that often, and prints the ids of the task
runs.
"""

from __future__ import annotations

import sys
from typing import Any

from prefect import flow

from noukai_prefect import NoukaiCredentials, arun_noukai_job, run_noukai_job

grade = run_noukai_job.with_options(name="grade")
agrade = arun_noukai_job.with_options(name="agrade")
TASKS = {"grade": grade, "agrade": agrade}


@flow
def delay_and_wait(flow: str, task: str) -> Any:
    """Delay a task, and wait for it."""
    delayed = TASKS[task].with_options(result_serializer="pickle")  # JSON cannot hold a flow's context
    return delayed.delay(NoukaiCredentials.load("default"), flow, "the same").result()


if __name__ == "__main__":
    task, noukai_flow, count = sys.argv[1:]
    credentials = NoukaiCredentials.load("default")
    for _ in range(int(count)):
        print(TASKS[task].delay(credentials, noukai_flow, "the same").task_run_id, flush=True)
