"""A DAG that starts when a run of a Noukai flow ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devtools.processes import LONGEST_WAIT, wait_until
from noukai_core import Noukai
from tests.e2e_airflow.conftest import AIRFLOW, KEY

if TYPE_CHECKING:
    from devtools.airflow_server import LocalAirflow
    from noukai_core.emulator import Emulator

DAG = "noukai_when_run_ends"
FLOW = "acme/books/review"


def test_a_run_that_ends_while_no_triggerer_runs(airflow: LocalAirflow, emulator_server: Emulator) -> None:
    """The DAG runs once for a run that ended while the triggerer was down, and not for earlier ones."""
    with Noukai(KEY, base_url=emulator_server.base_url) as client:
        flow = client.flow(FLOW)

        def reads() -> int:
            return emulator_server.control.counts().get("runs", 0)

        # The second read begins after the first has been stored. Before 3.3, Airflow has no store for the
        # cursor, so the reads of a triggerer that a test has ended do not count.
        before = 0 if AIRFLOW >= (3, 3) else reads()
        wait_until(lambda: reads() >= before + 2, "two reads", LONGEST_WAIT)
        if AIRFLOW >= (3, 3):
            airflow.triggerer.kill()
        job = flow.job("hello")
        job.wait()
        if AIRFLOW >= (3, 3):
            airflow.triggerer.start()

    def runs() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = airflow.get(f"/dags/{DAG}/dagRuns")["dag_runs"]
        return found

    (run,) = wait_until(runs, "the DAG to run", LONGEST_WAIT)
    airflow.wait_for(DAG, run["dag_run_id"], "show", "success")
    assert airflow.xcom(DAG, run["dag_run_id"], "show") == [job.id]
