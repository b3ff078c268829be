"""Prefect: a task that returns Cancelled is served from the cache as Completed, with the result None."""

from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.states import Cancelled


@task(cache_policy=INPUTS, persist_result=True)
def remote_job(name: str):
    """Return the state that says what became of a remote job."""
    return Cancelled(message="the remote job was cancelled")


@flow
def twice():
    """Call the task twice with the same input."""
    for _ in range(2):
        state = remote_job("a", return_state=True)
        print(f"{state.type.value} {state.name!r} data={state.result(raise_on_failure=False)!r}")


twice()
