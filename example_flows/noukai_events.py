"""Run a flow when a run of a Noukai flow ends, whatever started it.

The flow `watch_noukai_runs` of the package emits an event for each of them, and a deployment reacts to it.
"""

from __future__ import annotations

from prefect import flow, serve
from prefect.events import DeploymentEventTrigger

from noukai_prefect.flows import watch_noukai_runs

# The id that Noukai gave the flow: `job.accepted.flow_id`, or `flowId` in the response to a submission.
FLOW_ID = "fl_of_my_flow"


@flow
def noukai_events(run_id: str = "job_1", state: str = "completed") -> str:
    return f"The run {run_id} is {state}"


if __name__ == "__main__":
    serve(
        watch_noukai_runs.to_deployment(
            "every-minute", interval=60, concurrency_limit=1, parameters={"flow_id": FLOW_ID}
        ),
        noukai_events.to_deployment(
            "after-each-run",
            triggers=[
                DeploymentEventTrigger(
                    expect={"noukai.run.completed"},
                    match={"noukai.flow-id": FLOW_ID},
                    parameters={
                        "run_id": "{{ event.payload.run_id }}",
                        "state": "{{ event.payload.state }}",
                    },
                )
            ],
        ),
    )
