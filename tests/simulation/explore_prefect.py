"""Runs schedules of a Prefect flow run, and checks what must hold after each."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from noukai_core import NoukaiError
from tests.simulation.choices import Decision
from tests.simulation.clock import living_in
from tests.simulation.coverage import wire_states
from tests.simulation.explore import LIVING, Outcome, new_simulation
from tests.simulation.invariants import (
    ROUNDING,
    History,
    Violation,
    let_go,
    nothing_sent_without_proof,
    one_job_per_submission,
)
from tests.simulation.prefect_run import SLOT, PrefectFlowRun, prefect_world
from tests.simulation.process import StoreError
from tests.simulation.simulation import HORIZON

_CLOCK_SLACK = 0.2
"""How early the integration may take Prefect's timeout for over: its start and its end have two clocks."""

_MOMENT = 2.0
"""How long an attempt may rely on what Prefect has told it of the others."""


@contextmanager
def prefect_time() -> Iterator[None]:
    """Let the core and the integration live in virtual time."""
    with living_in(LIVING, "noukai_core", "noukai_prefect"):
        yield


def run_prefect(seed: int, replayed: Mapping[Decision, int] | None = None, *, told: bool = False) -> Outcome:
    """Run one schedule, inside of `prefect_time`."""
    simulation = new_simulation(seed, replayed, told=told)
    flow_run = PrefectFlowRun(simulation)
    with prefect_world(flow_run, simulation.clock):
        flow_run.begin()
        flow_run.interleaving.run(simulation.clock.now + HORIZON)
    history = History(simulation)
    return Outcome.of(seed, simulation, _violations(flow_run, history), wire_states(history))


def _violations(flow_run: PrefectFlowRun, history: History) -> list[Violation]:
    engine = (one_job_per_submission, nothing_sent_without_proof)
    found = [Violation(check.__name__, what) for check in engine for what in check(history)]
    checks = (
        one_job_at_a_time,
        running_jobs_are_named,
        cancelled_for_a_reason_only,
        the_next_attempt_keeps_its_jobs,
        results_are_true,
        the_files_are_complete,
        every_error_is_typed,
        the_flow_run_ends,
    )
    return found + [Violation(check.__name__, what) for check in checks for what in check(flow_run)]


def one_job_at_a_time(flow_run: PrefectFlowRun) -> Iterator[str]:
    """A new job for an input is submitted only when the one before has ended, or was let go."""
    if not flow_run.simulation.server.lists_in_time:
        return
    index_of = _inputs(flow_run)
    jobs = sorted(flow_run.simulation.server.jobs.values(), key=lambda job: job.created_at)
    for number, job in enumerate(jobs):
        now = job.exchange.sent_at
        for earlier in jobs[:number]:
            same_input = index_of.get(earlier.key, 0) == index_of.get(job.key, 0)
            if not same_input or earlier.key == job.key or earlier.created_at > now or earlier.finished(now):
                continue
            if earlier.exchange.jobs[0] is not earlier:
                continue  # the network made it
            if not let_go(flow_run.simulation, flow_run.lines, earlier, now, remembered=True):
                yield f"{job.id} was submitted while {earlier.id} ran"


def running_jobs_are_named(flow_run: PrefectFlowRun) -> Iterator[str]:
    """No job is left running after a person's act without a line that names it."""
    if not flow_run.simulation.server.lists_in_time or not (flow_run.acted_in_time and flow_run.handled):
        return
    if any("record not read" in line for _, line in flow_run.lines):
        return  # nobody could know what the earlier attempts had submitted, and a line says so
    for job_id in flow_run.running_at_the_end:
        job = flow_run.simulation.server.jobs[job_id]
        presumed_dead_at = flow_run.simulation.live[job.exchange.process - 1].presumed_dead_at
        if presumed_dead_at is not None and job.exchange.sent_at > presumed_dead_at:
            continue  # whom Prefect tells of the cancel cannot know of it
        first = job.exchange.jobs[0] is job  # the network made the others
        known = not any("cancellation unknown" in line for _, line in flow_run.lines)
        if first and not let_go(flow_run.simulation, flow_run.lines, job, math.inf, by_a_person=known):
            yield f"{job_id} is left running, and no line names it"


def cancelled_for_a_reason_only(flow_run: PrefectFlowRun) -> Iterator[str]:
    """Only a person or a deadline leads to a cancel."""
    timeouts = [flow_run.timeout]
    timeouts += [flow_run.time_limit - _CLOCK_SLACK] if flow_run.time_limit is not None else []
    deadline = min(timeouts) if flow_run.cancel_on_timeout else math.inf
    for exchange in flow_run.simulation.network.exchanges:
        if exchange.kind != "cancel" or flow_run.cancelling:
            continue
        # From the wire: the process may die before it writes a line.
        waited = exchange.sent_at - flow_run.began[exchange.process]
        if waited < deadline - ROUNDING:
            yield f"{exchange.job_id} was cancelled after {waited:.1f} s, and nobody asked for that"


def the_next_attempt_keeps_its_jobs(flow_run: PrefectFlowRun) -> Iterator[str]:
    """An attempt that Prefect has replaced ends no job because of its own deadline."""
    if flow_run.cancelling or any("attempts unknown" in line for _, line in flow_run.lines):
        return
    begun: set[tuple[int, str]] = set()
    for exchange in flow_run.simulation.network.exchanges:
        cancel = exchange.process, exchange.job_id
        if exchange.kind != "cancel" or cancel in begun:
            continue
        begun.add(cancel)  # what began earlier is only sent again
        replaced_at = flow_run.began.get(exchange.process + 1, math.inf)
        job = flow_run.simulation.server.job_of(exchange.job_id)
        ran = job is not None and not job.finished(exchange.sent_at) and exchange.sent_at < job.cancelled_at
        if ran and exchange.sent_at > replaced_at + _MOMENT:
            yield f"process {exchange.process} cancelled {exchange.job_id} after Prefect had replaced it"


def results_are_true(flow_run: PrefectFlowRun) -> Iterator[str]:
    """An output is that of a completed job of its input."""
    if flow_run.size and any(len(one.jobs) > 1 for one in flow_run.simulation.network.exchanges):
        return  # a gateway that sends a submission twice puts a job of no input into a session of others
    jobs = {job.id: job for job in flow_run.simulation.server.jobs.values() if job.final == "completed"}
    inputs = _inputs(flow_run)
    for index, output in flow_run.results:
        job = jobs.get(output["answer"]) if isinstance(output, dict) else None
        if job is None or inputs.get(job.key, 0) != index:
            yield f"input {index} came to {output!r}"


def the_files_are_complete(flow_run: PrefectFlowRun) -> Iterator[str]:
    """Of each input, the files that a batch has written tell what came of it."""
    yield from flow_run.lost


def _inputs(flow_run: PrefectFlowRun) -> dict[str, int]:
    """Return the input of each submission of a batch."""
    return {
        str(uuid.uuid5(uuid.UUID(SLOT), f"{index}:{number}")): index
        for index in range(flow_run.size)
        for number in range(8)
    }


def every_error_is_typed(flow_run: PrefectFlowRun) -> Iterator[str]:
    """Every error is one of the client's, or that of Prefect's server."""
    for error in flow_run.errors:
        if not isinstance(error, NoukaiError | StoreError | asyncio.CancelledError):
            yield f"an attempt ended with {error!r}"


def the_flow_run_ends(flow_run: PrefectFlowRun) -> Iterator[str]:
    """Every flow run ends."""
    if flow_run.over_at is None:
        yield "the flow run has not ended"
