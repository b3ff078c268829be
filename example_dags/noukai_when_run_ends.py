"""Run a DAG when a run of a Noukai flow ends, whatever started it: no schedule, and no task that waits."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, AssetWatcher, dag, task

from noukai_airflow.triggers.runs import NoukaiRunTrigger

# The id that Noukai gave the flow: `job.accepted.flow_id`, or `flowId` in the response to a submission. This
# one is acme/books/review on the local Noukai.
FLOW_ID = "f9ebb126-569a-5bda-b5de-20b9c32f3fd5"

reviewed = Asset(
    "noukai-review",
    watchers=[AssetWatcher("ended", trigger=NoukaiRunTrigger(FLOW_ID, states=["completed"]))],
)


@dag(schedule=[reviewed], tags=["noukai"])
def noukai_when_run_ends() -> None:
    @task
    def show(triggering_asset_events: Any = None) -> list[str]:
        """Return the runs that ended. One run of the DAG may be for several of them."""
        return [event.extra["payload"]["run_id"] for event in triggering_asset_events[reviewed]]

    show()


noukai_when_run_ends()
