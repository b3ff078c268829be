"""What Airflow's processes report to OpenLineage about a task."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from devtools.processes import wait_until
from tests.e2e_airflow.conftest import LINEAGE

if TYPE_CHECKING:
    from tests.e2e_airflow.conftest import Run, Runs


def facets(run: Run, event_type: str) -> dict[str, Any]:
    """Return the facets of the task's last event of a type."""
    file = run.airflow.home / LINEAGE
    lines = file.read_text().splitlines() if file.exists() else []
    events = [event for event in map(json.loads, lines) if event["job"]["name"] == f"{run.dag_id}.job"]
    reported = [event["run"]["facets"] for event in events if event["eventType"] == event_type]
    return reported[-1] if reported else {}


def test_openlineage(runs: Runs) -> None:
    """The start reports the flow, and the end, after a deferral, the job as an external query."""
    run = runs.start("with_openlineage", after_seconds=8)
    assert run.wait_for() == "success"
    flow, job_id = f"acme/tests/{run.flow}", run.job()["id"]
    ended = wait_until(lambda: facets(run, "COMPLETE"), "the end in the lineage")
    assert (ended["noukai_job"]["flow"], ended["noukai_job"]["jobId"]) == (flow, job_id)
    assert ended["externalQuery"] | {"externalQueryId": job_id, "source": "noukai"} == ended["externalQuery"]
    assert facets(run, "START")["noukai_job"]["flow"] == flow
