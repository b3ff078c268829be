"""What must hold after every schedule of an Airflow task that runs a batch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from tests.simulation.airflow_batch import AirflowBatch
from tests.simulation.airflow_invariants import the_next_try_keeps_its_job, the_task_ends
from tests.simulation.invariants import (
    History,
    Violation,
    cancel_was_accepted,
    let_go,
    one_job_per_submission,
)
from tests.simulation.server import ServerJob


class AirflowBatchHistory(History):
    """What there is to check about one schedule."""

    def __init__(self, task: AirflowBatch) -> None:
        super().__init__(task.simulation)
        self.task = task
        self.submissions = task.submissions()
        self.duplicated = any(len(exchange.jobs) > 1 for exchange in self.exchanges)

    def jobs_of(self, batch: int) -> Iterator[tuple[int, int, ServerJob]]:
        """Yield the jobs of a batch, with their inputs and resubmissions."""
        for job in self.simulation.server.jobs.values():
            number, index, again = self.submissions[job.key]
            if number == batch:
                yield index, again, job


def airflow_batch_violations(history: AirflowBatchHistory) -> list[Violation]:
    """Return what does not hold of a schedule that is over."""
    checks = (
        one_job_per_submission,
        no_second_job,
        one_batch_at_a_time,
        running_jobs_are_named,
        cancelled_for_a_reason_only,
        the_next_try_keeps_its_jobs,
        results_are_true,
    )
    found = [Violation(check.__name__, what) for check in checks for what in check(history)]
    of_the_task = [the_task_ends]
    if (
        history.task.durable and history.task.folder is None
    ):  # a header in a folder is that of a try that runs
        of_the_task.append(the_next_try_keeps_its_job)
    return found + [Violation(check.__name__, what) for check in of_the_task for what in check(history.task)]


def no_second_job(history: AirflowBatchHistory) -> Iterator[str]:
    """An input has a second job only when the one before has failed, or was told to end."""
    simulation = history.simulation
    if not simulation.server.lists_in_time or history.duplicated or not simulation.habits.recognisable:
        return
    for batch in range(len(history.task.batches)):
        jobs = list(history.jobs_of(batch))
        for index, again, job in jobs:
            for same, older, earlier in jobs:
                if (
                    same != index
                    or older >= again
                    or history.at_the_same_time(earlier.exchange, job.exchange)
                ):
                    continue
                ended = earlier.state(job.exchange.sent_at) in ("failed", "cancelled")
                if not ended and not cancel_was_accepted(earlier, history):
                    yield f"input {index} has {job.id} besides {earlier.id}"


def one_batch_at_a_time(history: AirflowBatchHistory) -> Iterator[str]:
    """A new batch begins only when the jobs of the one before have ended, or were told to, or are named."""
    task, simulation = history.task, history.simulation
    if not simulation.server.lists_in_time or not task.remembers:
        return  # nothing leads from one try to the next
    jobs = list(simulation.server.jobs.values())
    for job in jobs:
        for earlier in jobs:
            later = history.submissions[job.key][0] > history.submissions[earlier.key][0]
            now = job.exchange.sent_at
            if not later or earlier.created_at > now or earlier.finished(now):
                continue
            if history.at_the_same_time(earlier.exchange, job.exchange):
                continue
            if earlier.exchange.jobs[0] is earlier and not _let_go(history, earlier, now):
                yield f"{job.id} was submitted while {earlier.id} ran"


_UNREAD = re.compile(r"may be left running \(.*record of its jobs was")
_STORE_FAILED = re.compile(r"raised (StoreError|NoukaiException: output_path)")
_REPLACED = re.compile(r"left running \(.*replaced by new jobs")
_NAMED = re.compile(r"left running|may still be running")
_ENDED_HERE = re.compile(r"unknown \(|timed out \(")
_UNEXPLAINED = re.compile(r"only the worker is stopping|a retry |a rerun ")


def _let_go(history: AirflowBatchHistory, job: ServerJob, until: float, *, by_a_person: bool = False) -> bool:
    """Whether a job was told to end, or a line names it, its session, or all jobs that the record has."""
    task, ids = history.task, history.simulation.server.ids(job)
    if let_go(history.simulation, task.lines, job, until, by_a_person=by_a_person):
        return True
    for moment, line in task.lines:
        if not job.exchange.sent_at <= moment <= until or (by_a_person and _UNEXPLAINED.search(line)):
            continue
        if _REPLACED.search(line) and task.durable and task.cancel_on_kill:
            continue  # it was to be cancelled
        if job.session in line and _NAMED.search(line):
            return True
        if _UNREAD.search(line) and (not by_a_person or _had_no_chance(task)):
            return True
        if _ENDED_HERE.search(line) and any(name in line for name in (*ids, job.exchange.submission)):
            return True
    return False


def _had_no_chance(task: AirflowBatch) -> bool:
    """Whether the last part of a task was killed before it had read its record, or could not read it."""
    return task.ended_in in task.died or _STORE_FAILED.search(task.lines[-1][1]) is not None


def running_jobs_are_named(history: AirflowBatchHistory) -> Iterator[str]:
    """No job is left running after a person's act without a line that names it."""
    task = history.task
    if not history.simulation.server.lists_in_time or (task.acts and not task.act_handled):
        return  # nobody can know of it, or the process died in the middle of the act
    if history.duplicated:
        return  # a job that nobody asked for is taken for that of an interrupted submission
    for job_id in task.running_at_the_end:
        job = history.simulation.server.jobs[job_id]
        if task.state == "failed" and task.ended_in in task.killed:
            continue  # there was nobody to write a line
        if job.exchange.process in task.killed and not task.remembers:
            continue  # nothing leads to it
        first = job.exchange.jobs[0] is job  # the network made the others
        known = task.durable or job.exchange.process == task.ended_in
        if first and not _let_go(history, job, math.inf, by_a_person=task.marked and known):
            yield f"{job_id} is left running, and no line names it; the task is {task.state}"


def cancelled_for_a_reason_only(history: AirflowBatchHistory) -> Iterator[str]:
    """Only a person or a deadline leads to a cancel."""
    task = history.task
    by_person = bool(task.acts) and task.cancel_on_kill
    limited = task.job_timeout is not None or task.execution_timeout is not None
    by_deadline = limited and task.cancel_on_timeout
    if by_person or by_deadline or task.given_up_last:
        return
    for exchange in history.exchanges:
        if exchange.kind != "cancel":
            continue
        over = task.over_at is not None and exchange.sent_at >= task.over_at
        if exchange.process in task.replaced and (over or not task.durable):
            continue  # nobody waits for its jobs any more
        yield f"{exchange.job_id} was cancelled, and nobody asked for that"


def the_next_try_keeps_its_jobs(history: AirflowBatchHistory) -> Iterator[str]:
    """A worker that Airflow has replaced ends no job on its own: another try may wait for it."""
    # In a folder, only a try that runs has written its header.
    if history.task.durable and history.task.folder is None:
        yield from the_next_try_keeps_its_job(history.task, asks_every=1.0)


def results_are_true(history: AirflowBatchHistory) -> Iterator[str]:
    """A successful task has one outcome for each input, and the outputs are those of its completed jobs."""
    task = history.task
    if history.duplicated:
        return  # a job that nobody asked for is taken for that of an interrupted submission
    for batch, result in task.returned:
        jobs = [(index, job) for index, _, job in history.jobs_of(batch) if job.final == "completed"]
        outputs = {(index, str(job.output)) for index, job in jobs}
        completed, failed = _outcomes(task, result)
        if task.replaced:  # the file of the failures may be that of another try, which knew no better
            failed = sorted(set(failed) - {index for index, _ in completed})
        indexes = sorted([index for index, _ in completed] + failed)
        if indexes != list(range(task.inputs)):
            yield f"the task has outcomes of the inputs {indexes}"
        if failed and task.fail_on == "any":
            yield f"the task is successful, although {failed} failed"
        for index, output in completed:
            if (index, str(output)) not in outputs:
                yield f"the task has {output!r} for input {index}"


def _outcomes(task: AirflowBatch, result: Any) -> tuple[list[tuple[int, Any]], list[int]]:
    """Return the inputs and outputs of the jobs that completed, and the inputs of the others."""
    if isinstance(result, list):
        outputs = [(index, output) for index, output in enumerate(result) if output is not None]
        return outputs, [index for index, output in enumerate(result) if output is None]
    rows = [row for part in result["parts"] for row in task.rows(part)]
    failed = task.rows("failed.jsonl")
    return [(row["index"], row["output"]) for row in rows], [row["index"] for row in failed]
