"""Read what the jobs of a batch used. A limit on the cost cannot be kept where that cannot be read."""

from __future__ import annotations

from noukai_core._api import endpoints
from noukai_core._engine.batch_log import EachJobLog
from noukai_core._engine.batch_totals import BatchTotals
from noukai_core._engine.effects import Clock, Effects, send_with_retries
from noukai_core._validation import FlowPath
from noukai_core.errors import APIError, JobNotFoundError, PermanentError, PermissionDeniedError
from noukai_core.models import RunTrace


class BatchTraces:
    """The traces of a batch's jobs.

    Args:
        flow: The flow.
        clock: Seconds, from any beginning.
        totals: What is stopped when the cost of a job stays unknown, if there is a limit.
        each_job_log: Where the lines about single jobs go.
    """

    def __init__(self, flow: FlowPath, clock: Clock, totals: BatchTotals, each_job_log: EachJobLog) -> None:
        self._flow = flow
        self._clock = clock
        self._totals = totals
        self._each_job_log = each_job_log
        self._readable: bool | None = None

    def check(self, job_id: str) -> Effects[None]:
        """Find out at the first job whether traces can be read, before a second one costs anything."""
        if self._totals.most_usd is None or self._readable is not None:
            return
        try:
            yield from send_with_retries(endpoints.trace(self._flow, job_id), self._clock)
        except JobNotFoundError:
            pass  # it has not begun to run
        except PermanentError as error:
            self._totals.stop(f"traces cannot be read, so max_cost_usd cannot be kept: {error}")
        except APIError as error:
            self._warn(job_id, error)
        self._readable = self._readable or self._totals.stopped is None

    def read(self, job_id: str) -> Effects[RunTrace | None]:
        """Read what an ended job used. With `max_cost_usd`, what cannot be read stops the batch."""
        if self._readable is False:
            return None
        try:
            trace: RunTrace = yield from send_with_retries(endpoints.trace(self._flow, job_id), self._clock)
        except APIError as error:
            self._warn(job_id, error)
            if isinstance(error, PermissionDeniedError):
                self._readable = False
            if self._totals.most_usd is not None:
                self._totals.stop(
                    f"the cost of job {job_id} cannot be read, so max_cost_usd cannot be kept: {error}"
                )
            return None
        return trace

    def _warn(self, job_id: str, error: APIError) -> None:
        self._each_job_log.warning("Noukai job %s of %s: trace not available: %s", job_id, self._flow, error)
