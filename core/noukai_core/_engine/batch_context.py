"""What the jobs of one batch share."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from noukai_core._engine.batch_lanes import BatchLanes
from noukai_core._engine.batch_log import EachJobLog
from noukai_core._engine.batch_options import BatchOptions
from noukai_core._engine.batch_totals import BatchTotals
from noukai_core._engine.batch_traces import BatchTraces
from noukai_core._engine.effects import Clock
from noukai_core._engine.rate_limit import PollRateLimiter
from noukai_core._engine.wait import Stalls
from noukai_core._options import ClientOptions
from noukai_core._validation import FlowPath


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchContext:
    """What the jobs of one batch share.

    Attributes:
        batch_id: The batch.
        flow: The flow.
        settings: Those of the client.
        options: How the batch runs.
        clock: Seconds, from any beginning.
        limiter: The rate limit that all jobs share.
        stalls: When the driver was kept from running the strands.
        lanes: The sessions.
        totals: What has ended, and whether anything more is submitted.
        traces: What ended jobs used.
        each_job_log: Where the lines about single jobs go.
        fail: Ends the batch early.
    """

    batch_id: uuid.UUID
    flow: FlowPath
    settings: ClientOptions
    options: BatchOptions
    clock: Clock
    limiter: PollRateLimiter
    stalls: Stalls
    lanes: BatchLanes
    totals: BatchTotals
    traces: BatchTraces
    each_job_log: EachJobLog
    fail: Callable[[BaseException], None]
