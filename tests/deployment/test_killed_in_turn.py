"""Hundreds of jobs under faults, while the processes of a larger deployment are killed in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from devtools.airflow_server import FINAL_STATES
from devtools.processes import ServerError, wait_until
from tests.faults import kinds, scale
from tests.faults.balance import Report, check_balance, check_share
from tests.faults.jobs import Plan, plans

if TYPE_CHECKING:
    from tests.deployment.deployment import Deployment
    from tests.faults.noukai import NoukaiProcess

DAG = "under_faults"
JOBS = 200
ROUNDS = 2

_DEFERS = "waiting in the triggerer"

# On two cores the run takes five to eight minutes; a busy machine gets twice that.
RUN_SECONDS = 900


class Wanted(NamedTuple):
    """A job, and the mapped task that is to run it."""

    plan: Plan
    task_id: str
    map_index: int


def wanted_jobs() -> list[Wanted]:
    """Draw the jobs: one in six is waited for on a worker, and some are on the way whenever a process dies.

    None fails: a failed job makes way for a new one when its task is tried again, and whether a try that is
    killed has reported the failure before is chance.
    """
    drawn = [plan for plan in plans(2 * JOBS) if plan.outcome != "failed"][:JOBS]
    indexes: Counter[str] = Counter()
    wanted: list[Wanted] = []
    for number, plan in enumerate(drawn):
        task_id = "deferred" if number % 6 else "waiting"
        wanted.append(Wanted(plan._replace(after_seconds=10 * plan.after_seconds), task_id, indexes[task_id]))
        indexes[task_id] += 1
    return wanted


class JobsRun:
    """A run of the DAG with all the jobs."""

    def __init__(self, deployment: Deployment, wanted: list[Wanted]) -> None:
        self._deployment = deployment
        self._wanted = wanted
        conf = {
            task_id: [
                {"message": plan.message, "parameters": plan.parameters}
                for plan, its_task, _ in wanted
                if its_task == task_id
            ]
            for task_id in ("deferred", "waiting")
        }
        self._run_id = deployment.trigger(DAG, conf)

    def tasks(self) -> dict[tuple[str, int], Any]:
        """Return what the API says about each task."""
        return {
            (task_id, task["map_index"]): task
            for task_id in ("deferred", "waiting")
            for task in self._deployment.mapped_tasks(DAG, self._run_id, task_id)
        }

    def wait_for_end(self) -> None:
        """Wait until every task is in a final state."""
        states: Counter[str] = Counter()

        def ended() -> bool:
            states.clear()
            states.update(task["state"] for task in self.tasks().values())
            return set(states) <= FINAL_STATES

        try:
            wait_until(ended, "the end of the run", timeout=RUN_SECONDS, pause=2)
        except ServerError as error:
            raise ServerError(f"{error}; FAULT_SEED={scale.SEED}: {states}") from None

    def reports(self) -> Iterator[Report]:
        """Return what the tasks recorded about their jobs."""
        tasks = self.tasks()
        for plan, task_id, map_index in self._wanted:
            state = tasks[task_id, map_index]["state"]
            assert state == ("success" if plan.outcome == "completed" else "failed"), (task_id, map_index)
            job_id, status = (
                self._deployment.xcom(DAG, self._run_id, task_id, key, map_index)
                for key in ("job_id", "job_status")
            )
            if state == "success":
                output = self._deployment.xcom(DAG, self._run_id, task_id, map_index=map_index)
                assert output["message"] == plan.message
            yield Report(plan.message, job_id, status["state"])

    def moved_triggers(self) -> int:
        """Count the tries that had more triggerers (each of which writes a log) than deferrals."""
        folder = self._deployment.home / "logs" / f"dag_id={DAG}" / f"run_id={self._run_id}"
        return sum(
            len(list(log.parent.glob(f"{log.name}.trigger.*"))) > log.read_text().count(_DEFERS)
            for log in folder.glob("task_id=deferred/map_index=*/attempt=*.log")
            if ".trigger." not in log.name
        )


@pytest.mark.timeout(2 * RUN_SECONDS)
def test_killed_in_turn(deployment: Deployment, noukai: NoukaiProcess) -> None:
    """Whichever process is killed: each submission has one job, each job one outcome, none is cancelled."""
    kinds.switch_on(noukai.control, *(kind for kind in kinds.KINDS if kind != kinds.REFUSED))
    wanted = wanted_jobs()
    wait_until(lambda: deployment.live_schedulers() == 2, "both schedulers")
    run = JobsRun(deployment, wanted)
    (worker, other_worker), (triggerer, other_triggerer) = deployment.workers, deployment.triggerers
    scheduler, other_scheduler = deployment.schedulers
    victims = [worker, triggerer, scheduler, other_worker, other_triggerer, other_scheduler] * ROUNDS
    for turn, victim in enumerate(victims, start=1):
        due = turn * JOBS // (len(victims) + 1)
        wait_until(
            lambda due=due: len(noukai.control.jobs()) >= due,
            f"job {due} of {JOBS}",
            timeout=RUN_SECONDS,
            pause=0.5,
        )
        if victim in deployment.workers:
            wait_until(lambda victim=victim: deployment.has_tasks(victim), f"a task on {victim.name}")
        if victim in deployment.triggerers:
            wait_until(
                lambda victim=victim: deployment.has_triggers(victim, noukai.port),
                f"a trigger in {victim.name}",
            )
        victim.kill()
        victim.start()
    run.wait_for_end()
    noukai.control.clear_faults()
    check_balance(noukai.control.jobs(), [job.plan.message for job in wanted], run.reports())
    check_share(noukai.control.requests(), scale.SHARE)
    assert noukai.control.requests(kind="cancel") == []
    # Tries have died with their workers, and triggers with their triggerers, or the run has shown nothing.
    assert max(task["try_number"] for task in run.tasks().values()) > 1
    assert run.moved_triggers() > 0
