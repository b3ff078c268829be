"""A background task.

As a script, `background.py NOUKAI_FLOW COUNT` delays it that often, and prints the ids of the task runs.
"""

from __future__ import annotations

import sys

from noukai_prefect import NoukaiCredentials, run_noukai_job

grade = run_noukai_job.with_options(name="grade")

if __name__ == "__main__":
    noukai_flow, count = sys.argv[1:]
    credentials = NoukaiCredentials.load("default")
    for _ in range(int(count)):
        print(grade.delay(credentials, noukai_flow, "the same").task_run_id, flush=True)
