"""Which runs of a flow ended since the last read?

The server lists the newest hundred runs of a flow, of all states or of one, sorted by when they began. A
cursor keeps which runs are known, and which of them had not ended.
"""

from __future__ import annotations

from noukai_core._api import endpoints
from noukai_core._api.endpoints import PAGE_SIZE
from noukai_core._engine.effects import Clock, Effects, send_with_retries
from noukai_core.errors import JobNotFoundError, PermissionDeniedError
from noukai_core.models import JobState
from noukai_core.runs import EndedRuns, FlowRun, RunsCursor

_LISTED_STATES = (JobState.RUNNING, JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)

# How many runs that began before the newest hundred are read one by one each time.
_SINGLE_READS = 20


def read_ended_runs(flow_id: str, cursor: RunsCursor | None, clock: Clock) -> Effects[EndedRuns]:
    """Read which runs ended since the cursor. The first read only makes the cursor.

    Args:
        flow_id: The flow, by the id that the server gave it.
        cursor: Where the previous read ended; `None` for the first read.
        clock: Seconds, from any beginning.
    """
    newest: tuple[FlowRun, ...] = yield from send_with_retries(endpoints.runs(flow_id), clock)
    if cursor is None:
        unfinished = [run.id for run in newest if not run.finished]
        return EndedRuns((), RunsCursor({}).after(newest, unfinished), complete=True)
    pages, complete = [newest], _reaches(newest, cursor)
    if not complete:
        # More than a page of runs began since the last read. The pages of single states show more of them.
        complete = True
        for state in _LISTED_STATES:
            page = yield from send_with_retries(endpoints.runs(flow_id, state), clock)
            pages.append(page)
            complete = complete and _reaches(page, cursor)
    listed = {run.id: run for page in pages for run in page}
    new = {run.id: run for page in pages for run in _new(page, cursor)}
    unlisted = [run_id for run_id in cursor.open if run_id not in listed]
    checked: list[FlowRun] = []
    gone: set[str] = set()
    for run_id in unlisted[:_SINGLE_READS]:
        try:
            checked.append((yield from send_with_retries(endpoints.run(run_id), clock)))
        except (JobNotFoundError, PermissionDeniedError):  # some deployments refuse traces to API keys
            gone.add(run_id)
    watched = [listed[run_id] for run_id in cursor.open if run_id in listed] + checked
    seen = [*watched, *new.values()]
    # What was not read this time is read first the next time.
    later = [run_id for run_id in unlisted[_SINGLE_READS:] if run_id not in gone]
    unfinished = [*later, *(run.id for run in seen if not run.finished)]
    newest_first = sorted(new.values(), key=_age, reverse=True)
    ended = sorted((run for run in seen if run.finished), key=_end)
    return EndedRuns(tuple(ended), cursor.after(newest_first, unfinished), complete)


def _reaches(page: tuple[FlowRun, ...], cursor: RunsCursor) -> bool:
    """Return whether a page shows every run of its kind that began since the last read."""
    if len(page) < PAGE_SIZE:
        return True
    begins_at = cursor.begins_at
    return any(
        run.id in cursor.known
        or (begins_at is not None and run.listed_at is not None and run.listed_at < begins_at)
        for run in page
    )


def _new(page: tuple[FlowRun, ...], cursor: RunsCursor) -> list[FlowRun]:
    """Return the runs of a page that are not known: without times, those before the known ones."""
    begins_at, found, past_known = cursor.begins_at, list[FlowRun](), False
    for run in page:
        if run.id in cursor.known or run.id in cursor.open:
            past_known = True
        elif begins_at is None or run.listed_at is None:
            if not past_known:
                found.append(run)
        elif run.listed_at >= begins_at:
            found.append(run)
    return found


def _age(run: FlowRun) -> float:
    return run.listed_at.timestamp() if run.listed_at else 0.0


def _end(run: FlowRun) -> str:
    return run.completed_at or ""
