"""`make demo`: one DAG on a real Airflow and one flow on a real Prefect, against a local Noukai.

Three jobs each: one completes, one fails, one is cancelled. It runs from the Prefect environment;
`AIRFLOW_BIN` and `PREFECT_BIN` name the folders with the commands of the two.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType

from demo.report import Ending, LiveView, say, table
from devtools.airflow_server import LocalAirflow
from devtools.prefect_server import LocalPrefect
from devtools.processes import ServerError, wait_until
from noukai_core import Noukai
from noukai_core.emulator import Emulator

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".build" / "demo"
KEY = "nk_test_00000000_a-key-that-only-the-local-noukai-takes"
ENDINGS = ("completes", "fails", "is-cancelled")
DAG = "noukai_three_endings"
DEPLOYMENT = "noukai-three-endings/local"
SECONDS = 240.0

# Long enough for Airflow: its scheduler can fail a task that is woken within seconds of its deferral
# ("finished with state success, but the task instance is queued").
SCRIPT = {
    "completes": {"after_seconds": 18.0, "result": {"grade": "A", "words": 1284}},
    "fails": {"after_seconds": 14.0, "outcome": "failed", "error": "The model ran out of words"},
    "is-cancelled": {"after_seconds": 16.0, "outcome": "cancelled"},
}

TRY_NEXT = """
Try next:
  example_dags/, example_flows/         one idea a file
  make docs-serve                       the documentation, with quickstarts for both
  make test                             the tests of what it promises
  .venv/airflow/bin/python -m noukai_core.emulator
                                        a local Noukai for your own DAGs and flows: its address is the host
                                        of a connection, or the base_url of a block
"""


def main() -> int:
    """Run the demo, and return the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    shutil.rmtree(HOME, ignore_errors=True)
    airflow = LocalAirflow(
        Path(os.environ["AIRFLOW_BIN"]), HOME / "airflow", [ROOT / "example_dags"], environment={}
    )
    prefect = LocalPrefect(Path(os.environ["PREFECT_BIN"]), HOME / "prefect")
    try:
        with Emulator(SCRIPT) as emulator:
            say(f"A local Noukai listens on {emulator.base_url}")
            with LiveView(emulator.control), ThreadPoolExecutor(2) as pool:
                runs = [
                    pool.submit(run_airflow, airflow, emulator.base_url),
                    pool.submit(run_prefect, prefect, emulator.base_url),
                ]
                try:
                    for done in wait(runs, return_when=FIRST_EXCEPTION).done:
                        done.result()
                except BaseException:
                    # Anything that a thread still waits for ends with the processes.
                    airflow.stop()
                    prefect.stop()
                    raise
                endings = [ending for run in runs for ending in run.result()]
            with Noukai(KEY, base_url=emulator.base_url) as client:
                print(f"\n{table(endings, emulator.control, client)}\n{TRY_NEXT}")
    except KeyboardInterrupt:
        say("Interrupted: stopping every process")
        return 130
    finally:
        # From here on nothing may keep the processes from being ended, not even a second interrupt.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        airflow.stop()
        prefect.stop()
    shutil.rmtree(HOME, ignore_errors=True)
    return 0


def run_airflow(airflow: LocalAirflow, base_url: str) -> list[Ending]:
    """Run the DAG, and return what became of its tasks."""
    say("Airflow starts: scheduler, DAG processor, triggerer, API servers")
    airflow.start()
    airflow.add_connection("noukai_default", conn_type="noukai", host=base_url, password=KEY)
    say(f"Airflow is up on {airflow.url}; it runs the DAG {DAG}")
    run_id = airflow.trigger(DAG)
    endings: list[Ending] = []
    for task in ENDINGS:
        state = str(airflow.wait_for(DAG, run_id, task, timeout=SECONDS))
        say(f"{'Airflow':8} task {task}: {state}")
        error = None if state == "success" else _error_in_log(airflow, run_id, task)
        endings.append(Ending("Airflow", task, state, error))
    return endings


def run_prefect(prefect: LocalPrefect, base_url: str) -> list[Ending]:
    """Run the flow, and return what became of its tasks."""
    say("Prefect starts: server, and a process that serves the deployment")
    prefect.start()
    prefect.save_blocks({"default": ("NoukaiCredentials", {"api_key": KEY, "base_url": base_url})})
    prefect.serve(f"{ROOT / 'example_flows' / 'noukai_three_endings.py'}:noukai_three_endings")
    say(f"Prefect is up on {prefect.url}; it runs the deployment {DEPLOYMENT}")
    run_id = prefect.run(DEPLOYMENT)
    prefect.wait_for(run_id, timeout=SECONDS)
    endings: list[Ending] = []
    for task in prefect.ended_task_runs(run_id):
        state = task["state_name"]
        say(f"{'Prefect':8} task {task['name']}: {state}")
        error = (task["state"]["message"] or "").removeprefix("Task run encountered an exception ")
        endings.append(Ending("Prefect", task["name"], state, None if state == "Completed" else error))
    return endings


def _error_in_log(airflow: LocalAirflow, run_id: str, task: str) -> str:
    """Wait for the last line of a failed task's log, which Airflow writes a moment after the state."""
    try:
        return wait_until(lambda: _last_error(airflow.logs(DAG, run_id, task)), "the error in the log", 15)
    except ServerError:
        return "see the log of the task"


def _last_error(log: str) -> str:
    """Find the last message of a task in its log, which has one JSON object per line."""
    said = ""
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        for error in entry.get("error_detail") or ():
            said = error.get("exc_value") or said
    return said


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
