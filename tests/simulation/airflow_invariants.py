"""What must hold after every schedule of an Airflow task."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tests.simulation.airflow_task import AirflowTask
from tests.simulation.invariants import (
    ROUNDING,
    History,
    Violation,
    let_go,
    nothing_sent_without_proof,
    one_job_per_submission,
    poll_rate_within_limit,
)
from tests.simulation.pages import Response
from tests.simulation.server import ServerJob


def airflow_violations(task: AirflowTask) -> list[Violation]:
    """Return what does not hold of a schedule that is over."""
    history = History(task.simulation)
    engine = (one_job_per_submission, nothing_sent_without_proof, poll_rate_within_limit)
    found = [Violation(check.__name__, what) for check in engine for what in check(history)]
    checks = (
        one_job_at_a_time,
        running_jobs_are_named,
        cancelled_for_a_reason_only,
        the_next_try_keeps_its_job,
        results_are_true,
        promises_to_attach_are_kept,
        the_task_ends,
    )
    return found + [Violation(check.__name__, what) for check in checks for what in check(task)]


def one_job_at_a_time(task: AirflowTask) -> Iterator[str]:
    """A new job is submitted only when the one before has ended, or was told to, or is named as running."""
    if not task.simulation.server.lists_in_time:
        return
    jobs = sorted(task.simulation.server.jobs.values(), key=lambda job: job.created_at)
    for number, job in enumerate(jobs):
        for earlier in jobs[:number]:
            if earlier.exchange is job.exchange or earlier.exchange.submission == job.exchange.submission:
                continue
            now = job.exchange.sent_at
            if earlier.created_at > now or earlier.finished(now):
                continue
            if earlier.exchange.jobs[0] is not earlier or _nobody_can_know(task, earlier):
                continue  # the network made it, or nothing leads to it
            if not let_go(task.simulation, task.lines, earlier, now, remembered=task.durable_store):
                yield f"{job.id} was submitted while {earlier.id} ran"


def _nobody_can_know(task: AirflowTask, job: ServerJob) -> bool:
    """Whether nothing leads to a job: without a store, what was killed, or what is not listed in time."""
    remembered = task.durable_store or task.simulation.recovery_timeout > 0
    if not remembered and (job.exchange.process in task.killed or task.triggerer_killed):
        return True
    return not task.durable_store and bool(task.acts) and _denied(task, job)


def _denied(task: AirflowTask, job: ServerJob) -> bool:
    """Whether the service said that there is none when the task of a job was cleared, and it showed later."""
    return any(
        exchange.kind == "session"
        and exchange.submission == job.exchange.submission
        and exchange.sent_at >= job.exchange.sent_at
        and isinstance(exchange.end, Response)
        and exchange.end.proves_absence
        for exchange in task.simulation.network.exchanges
    )


def running_jobs_are_named(task: AirflowTask) -> Iterator[str]:
    """No job is left running after a person's act without a line that names it."""
    if not task.simulation.server.lists_in_time or (task.acts and not task.act_handled):
        return  # nobody can know of it, or the process died in the middle of the act
    for job_id in task.running_at_the_end:
        job = task.simulation.server.jobs[job_id]
        # The last try was killed, or one whose job nothing leads to: there was nobody to write a line.
        if (task.state == "failed" and task.ended_in in task.killed) or _nobody_can_know(task, job):
            continue
        first = job.exchange.jobs[0] is job  # the network made the others
        ended = task.marked and task.cancel_on_kill
        if first and not let_go(task.simulation, task.lines, job, math.inf, by_a_person=ended):
            yield f"{job_id} is left running, and no line names it; the task is {task.state}"


def cancelled_for_a_reason_only(task: AirflowTask) -> Iterator[str]:
    """Only a person or a deadline leads to a cancel, and no deadline comes early."""
    simulation = task.simulation
    for job in simulation.server.jobs.values():
        after_the_end = task.over_at is not None and job.exchange.sent_at >= task.over_at
        if after_the_end and job.exchange.process in task.replaced:
            continue  # a worker that knew of no later try has submitted it, and nobody waits for it
        by_person = bool(task.acts) and task.cancel_on_kill
        by_deadline = bool(task.timed_out_at) and task.cancel_on_timeout
        # Airflow has failed the last try of a worker that lives: as if a person had marked the task.
        if job.cancels and not by_person and not by_deadline and not task.given_up_last:
            yield f"{job.id} was cancelled, and nobody asked for that"
    if simulation.clock_errors:
        return
    for moment in task.timed_out_at:
        if moment < task.queued_at + task.timeout - ROUNDING:
            yield f"a deadline of {task.timeout:g} s passed after {moment - task.queued_at:.1f} s"


def the_next_try_keeps_its_job(task: AirflowTask, asks_every: float = 0.0) -> Iterator[str]:
    """A worker that Airflow has replaced ends no job on its own: another try may wait for it.

    Args:
        task: The task.
        asks_every: After how many seconds the worker asks Airflow again.
    """
    if not task.durable_store:
        return  # nothing tells the worker
    server, live = task.simulation.server, task.simulation.live
    begun: dict[tuple[int, str], float] = {}
    for exchange in task.simulation.network.exchanges:
        job = server.job_of(exchange.job_id) if exchange.kind == "cancel" else None
        if job is None or exchange.process not in task.replaced or (task.acts and task.cancel_on_kill):
            continue
        decided_at = begun.setdefault((exchange.process, job.id), exchange.sent_at)  # what failed is repeated
        replaced_at = live[exchange.process - 1].presumed_dead_at
        ran = not job.finished(exchange.sent_at) and exchange.sent_at < job.cancelled_at
        if replaced_at is not None and decided_at > replaced_at + asks_every and ran:
            yield f"process {exchange.process} cancelled {job.id} after Airflow had replaced it"


def results_are_true(task: AirflowTask) -> Iterator[str]:
    """A successful task has the output of a job of its own that has completed."""
    outputs = [job.output for job in task.simulation.server.jobs.values() if job.final == "completed"]
    for result in task.results:
        if result not in outputs:
            yield f"the task returned {result!r}"


def promises_to_attach_are_kept(task: AirflowTask) -> Iterator[str]:
    """No line says that a retry attaches when there will be none."""
    # A worker that Airflow has replaced cannot know what became of the later tries.
    if task.over_at is not None and task.state == "failed" and not task.acts and not task.replaced:
        moment, last = task.lines[-1] if task.lines else (0.0, "")
        if "retry attaches" in last and moment >= task.began_at:
            yield f"it says {last!r}, and there is no retry"


def the_task_ends(task: AirflowTask) -> Iterator[str]:
    """Every task ends."""
    if task.over_at is None:
        yield f"the task is still {task.state}"
