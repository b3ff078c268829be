"""Cancel a job of a batch, even one that an interrupted submission may have made."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from noukai_core._api import endpoints
from noukai_core._engine.effects import Clock, Effects, Sleep, send_with_retries
from noukai_core._engine.lanes import Lane
from noukai_core._engine.submit import find
from noukai_core._validation import FlowPath
from noukai_core.batch import LedgerEntry
from noukai_core.cancellation import CancelOutcome
from noukai_core.errors import NoukaiError
from noukai_core.submission import Submission

log = logging.getLogger("noukai_core")

CANCEL_LOOKUPS = 3
CANCEL_LOOKUP_PAUSE = 1.0


def cancel_job(job_id: str, flow: FlowPath, clock: Clock, race_ends: float) -> Effects[CancelOutcome]:
    """Cancel a job, and poll what it came to.

    Args:
        job_id: The job.
        flow: Its flow.
        clock: Seconds, from any beginning.
        race_ends: Until when, on that clock, the service may not know it yet.
    """
    call = endpoints.cancel(flow, job_id)
    try:
        had_ended = not (yield from send_with_retries(call, clock, race_ends=race_ends))
    except NoukaiError as error:
        return CancelOutcome(job_id, str(flow), error=error)
    try:
        status = yield from send_with_retries(endpoints.status(flow, job_id), clock)
    except NoukaiError:
        status = None
    return CancelOutcome(job_id, str(flow), status, had_ended=had_ended)


def find_interrupted(
    places: Sequence[tuple[LedgerEntry, Lane | None]], flow: FlowPath, clock: Clock
) -> Effects[list[str]]:
    """Return the job of a submission that was interrupted, if it can be found; one for each session.

    Args:
        places: What is recorded of the submission, each with its session. The list of a user's session
            cannot tell which job it is, so that has none.
        flow: The flow.
        clock: Seconds, from any beginning.
    """
    found: list[str] = []
    for entry, lane in places:
        submission = Submission(entry.submission_id, entry.sent_at)
        job_id = None if lane is None else (yield from _look_up(entry, submission, flow, clock, lane))
        if job_id is not None:
            found.append(job_id)
    if not found:
        log.warning(
            "Noukai submission %s to %s: may be left running (interrupted before the response)",
            places[0][0].submission_id,
            flow,
        )
    return found


def _look_up(
    entry: LedgerEntry, submission: Submission, flow: FlowPath, clock: Clock, lane: Lane
) -> Effects[str | None]:
    lane.known.add_digests(entry.others)
    for attempt in range(CANCEL_LOOKUPS):
        if attempt:
            yield Sleep(CANCEL_LOOKUP_PAUSE)
        try:
            found = yield from find(submission, flow, clock, lane.session)
        except NoukaiError as error:
            log.warning("Noukai submission %s to %s: lookup failed: %s", submission.id, flow, error)
            continue
        if found is not None:
            return found.id
    return None
