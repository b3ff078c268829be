"""The batch of one task: which of its jobs this try continues with, how it waits, and how the task ends."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NoReturn

from noukai_airflow import _xcoms
from noukai_airflow._batch_header import BatchHeader
from noukai_airflow._batch_inputs import EMPTY, BatchInputs
from noukai_airflow._batch_kill import BatchKilled, cancel_and_log, kill, log_left_running, log_unread
from noukai_airflow._batch_log import BatchLog, FolderLog, StateStoreLog, TemporaryStore, task_state_store
from noukai_airflow._batch_outcome import PROGRESS_SECONDS, FailOn, check_outcomes, progress_text
from noukai_airflow._batch_output import OutputFolder
from noukai_airflow._batch_thread import BatchOptions, BatchThread
from noukai_airflow._compat import CLEAR_DISCARDS_STATE
from noukai_airflow._job_store import TaskKey
from noukai_airflow._kill_policy import ANOTHER_TRY, USER_ENDED
from noukai_airflow._retries import ran_before
from noukai_airflow._storage import check_writable, storage_path
from noukai_airflow._wait import execution_deadline
from noukai_airflow._xcom_values import as_xcom
from noukai_airflow._xcoms import task_instance_of
from noukai_airflow.exceptions import NoukaiException, NoukaiJobTimeoutException, NoukaiPermanentException
from noukai_airflow.triggers.batch import NoukaiBatchTrigger
from noukai_airflow.triggers.noukai import backstop
from noukai_core.batch_deadline import CancelUnlessReplaced
from noukai_core.batch_record import BatchRecord, Row

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.sdk import Context, ObjectStoragePath
    from pydantic import BaseModel

    from noukai_airflow._connection import ConnectionSettings
    from noukai_airflow._wait import OnCancelled

log = logging.getLogger(__name__)

_STOP_SECONDS = 30.0
_CANCEL_SECONDS = 60.0

# The results of so many jobs take twenty seconds at the usual rate limit. Those of many thousands would take
# minutes, if they were only fetched once all have ended.
_MANY_RESULTS = 1000


@dataclass(frozen=True)
class BatchTaskOptions:
    """How a task runs a batch. For the options that are not described here see `NoukaiRunJobsOperator`.

    Attributes:
        timeout: In seconds.
        execution_timeout: Airflow's own limit for the task.
        poll_interval: In seconds.
        retry_left: Whether the task has a retry left.
        push_xcoms: Whether the task pushes XComs.
    """

    flow: str
    version: str | int
    trace: bool
    noukai_conn_id: str
    output_path: str | ObjectStoragePath | None
    storage_conn_id: str | None
    output_type: type[BaseModel] | None
    max_concurrency: int
    max_cost_usd: Decimal | None
    fail_on: FailOn
    deferrable: bool
    timeout: float | None
    execution_timeout: timedelta | None
    poll_interval: float | None
    on_cancelled: OnCancelled
    cancel_on_kill: bool
    cancel_on_timeout: bool
    durable: bool
    retry_left: bool
    push_xcoms: bool


class BatchRun:
    """One segment of a task: from its start to its end or deferral, or from its resumption to its end.

    Args:
        options: How to run.
        defer: The operator's `defer`.
        context: The task's context.
        settings: The connection.
        inputs: The inputs.
        resumed: Whether this try was deferred before.
        can_defer: Whether to wait in the triggerer, if the options say so.

    Attributes:
        batch_id: The batch, once it has begun.
    """

    def __init__(
        self,
        options: BatchTaskOptions,
        defer: Callable[..., NoReturn],
        context: Context,
        settings: ConnectionSettings,
        inputs: BatchInputs,
        *,
        resumed: bool,
        can_defer: bool,
    ) -> None:
        self._options = options
        self._defer = defer
        self._context = context
        self._settings = settings
        self._inputs = inputs
        self._resumed = resumed
        self._detach = options.deferrable and can_defer
        self._task = task_instance_of(context)
        folder = options.output_path
        self._folder = (
            None if folder is None else storage_path(folder, options.storage_conn_id, "output_path")
        )
        self._log = self._open_log()
        self._header = BatchHeader(
            self._log, self._task, self._task_name(), in_folder=self._folder is not None
        )
        self._thread: BatchThread | None = None
        self._record: BatchRecord | None = None
        self._cancel_on_timeout = CancelUnlessReplaced(lambda: asyncio.to_thread(self._is_replaced))
        self._kill_requested = False
        self._may_have_jobs = True
        self._jobs_ended = False  # or what becomes of them has been said
        self.batch_id: str | None = None
        self._next_progress = 0.0
        self._published: set[str] | None = None

    @property
    def summary(self) -> dict[str, Any] | None:
        """What came of the jobs so far, once the batch has begun."""
        return None if self._record is None else self._record.summary()

    def segment(self, started: float) -> Any:
        """Run the batch to its end or to the next deferral.

        Args:
            started: When this segment started, in seconds since the epoch.
        """
        header, retried = self._begin(started)
        record = self._record = self._load_record(retried=retried)
        self.batch_id = header["batch_id"]
        output = None if self._folder is None else OutputFolder(self._folder)
        if output is not None and not self._kill_requested:
            output.adopt_parts(record)
        thread = self._thread = BatchThread(
            self._settings,
            self._engine_options(header, record),
            self._inputs,
            record,
            output,
            self._header.is_own,
        )
        if self._kill_requested:
            if not thread.running:
                raise BatchKilled("nothing was submitted", by_user=False)
            self.kill()  # which asks who sent the signal
        thread.start()
        while not thread.wait(1.0):
            self._publish_sessions(thread.sessions)
            self._report_progress(record, thread.running)
        self._publish_sessions(thread.sessions)
        thread.check()
        self._push_status(record, thread.waiting)
        if thread.waiting:
            self._wait_in_triggerer(thread, record, header)
        return self._finish(header, record)

    def kill(self) -> None:
        """End the batch because of a signal, at once or before it begins."""
        self._kill_requested = True
        options = self._options
        if self._jobs_ended:
            return
        if self._thread is None:
            # There may be no time left to read it.
            self._log_unread("interrupted before the record of its jobs was read")
            return
        raise kill(
            self._thread,
            self._task,
            flow=options.flow,
            cancel_on_kill=options.cancel_on_kill,
            durable=options.durable,
            retry_left=options.retry_left,
            is_replaced=self._is_replaced,
        )

    def time_out(self) -> str:
        """End the batch because the task's time is over, and return what happens to the jobs."""
        thread = self._thread
        if thread is None:
            self._log_unread("timed out before the record of its jobs was read")
            return "nothing was submitted"
        phrase = self._cancel_or_keep(thread)
        thread.stop(_STOP_SECONDS)
        return phrase

    def interrupt(self) -> None:
        """End the batch because a person has interrupted the task: cancel its jobs, or name them."""
        thread, options = self._thread, self._options
        if self._jobs_ended:
            return
        if thread is None:
            self._log_unread("interrupted before the record of its jobs was read")
        elif options.cancel_on_kill:
            cancel_and_log(thread, USER_ENDED, options.flow, _CANCEL_SECONDS)
        else:
            thread.stop(_STOP_SECONDS)
            log_left_running(thread, "cancel_on_kill is off", options.flow)

    def leave(self, *, retry_left: bool) -> None:
        """Name the jobs that an error leaves running, unless a retry attaches to them.

        Args:
            retry_left: Whether the task runs again.
        """
        thread, options = self._thread, self._options
        if self._jobs_ended:
            return
        if thread is not None:
            thread.stop(_STOP_SECONDS)
        replaced = thread is not None and self._is_replaced()
        if options.durable and retry_left and not replaced:
            return
        if thread is None:
            self._log_unread("the record of its jobs was not read")
        elif thread.running:
            reason = "a retry submits new jobs" if retry_left else "no retry is left"
            log_left_running(thread, ANOTHER_TRY if replaced else reason, options.flow)

    def _cancel_or_keep(self, jobs: BatchThread) -> str:
        """Cancel the jobs at a deadline, or leave them running, and return what happens to them."""
        options = self._options
        replaced = options.cancel_on_timeout and self._is_replaced()
        if options.cancel_on_timeout and not replaced:
            return cancel_and_log(jobs, "timed out", options.flow, _CANCEL_SECONDS)
        jobs.stop(_STOP_SECONDS)
        log_left_running(jobs, ANOTHER_TRY if replaced else "timed out", options.flow)
        return f"{jobs.running:,} jobs left running"

    def _log_unread(self, reason: str) -> None:
        if self._may_have_jobs and ran_before(self._context, resumed=self._resumed):
            log_unread(self._options.flow, reason)

    def _is_replaced(self) -> bool:
        """Return whether Airflow has begun another try of the task although this one still runs."""
        return self._options.durable and not self._header.is_own()

    def _recorded_jobs(self, header: dict[str, Any], record: BatchRecord) -> BatchThread:
        """Return a thread for the jobs that are recorded and have not ended, to cancel or to name them."""
        options = replace(self._engine_options(header, record), flow=str(header["flow"]))
        inputs = BatchInputs(iter(()), None)
        return BatchThread(self._settings, options, inputs, record, None, self._header.is_own)

    # Which batch this is

    def _load_record(self, *, retried: bool) -> BatchRecord:
        return BatchRecord.load(self._log.rows(), self._append, retried=retried)

    async def _append(self, rows: list[Row]) -> None:
        """Append rows. If another try has begun, which submits what these rows precede, that fails.

        Airflow's state store refuses what an earlier try writes. A folder does not, so it is asked as well.
        """
        await asyncio.to_thread(self._log.append, rows)
        # Not at the same time: of two tries, each of which appends before it asks, one sees the other.
        if self._folder is not None:
            await asyncio.to_thread(self._header.check_own)

    def _open_log(self) -> BatchLog:
        if self._folder is not None:
            return FolderLog(self._folder)
        store = task_state_store(self._context)
        if store is not None:
            return StateStoreLog(store, self._task.try_number)
        if self._options.durable or self._options.deferrable:
            raise NoukaiPermanentException(
                "This version of Airflow has no task state store, so that a batch can be continued only from "
                "its output folder: set output_path, or durable=False and deferrable=False"
            )
        return StateStoreLog(TemporaryStore(), self._task.try_number)

    def _begin(self, started: float) -> tuple[dict[str, Any], bool]:
        """Return the header of this task's batch, and whether an earlier try began it."""
        header = self._header.read()
        self._may_have_jobs = header is not None
        if header is not None and header.get("task") != self._task_name():
            raise NoukaiPermanentException(
                f"output_path {self._options.output_path} has the outcomes of another task "
                f"({header.get('task')}): give each its own folder, for example with {{{{ run_id }}}}, "
                "and a mapped task with {{{{ ti.map_index }}}}"
            )
        if header is not None and self._header.is_later(header):
            self._may_have_jobs = False  # they belong to the later try
            raise NoukaiException(ANOTHER_TRY)
        if header is not None and self._continues(header):
            if not self._inputs.matches(header.get("inputs")):
                raise NoukaiPermanentException(
                    "The inputs are not those of the task's earlier try, whose jobs were paid for: restore "
                    "them, or clear the task to submit all jobs again"
                )
            if isinstance(header.get("total"), int):
                self._inputs.total = header["total"]
            retried = header["try_number"] != self._task.try_number
            if retried:
                header = self._header.write(header | self._until(started))
            self._header.keep(header)
            return header, retried
        if header is None:
            self._inputs.check()
        else:
            self._end_earlier(header)
        return self._new_header(started, first=header is None), False

    def _continues(self, header: dict[str, Any]) -> bool:
        """Return whether this try continues the recorded batch, and is not the first one after a clear."""
        if header.get("ended"):
            return False
        if self._resumed:
            return True
        if header.get("max_tries") != self._task.max_tries:
            # Where a clear discards the store, one that outlived it is one that the user kept.
            kept = CLEAR_DISCARDS_STATE and self._folder is None and not header.get("delivered")
            if not kept:
                return False
            header["max_tries"] = self._task.max_tries
        # Airflow runs a try once more that was rescheduled, for example because its DAG file was missing.
        return self._options.durable or header.get("try_number") == self._task.try_number

    def _end_earlier(self, header: dict[str, Any]) -> None:
        """Stop what runs of an earlier batch of this task, and forget it."""
        if self._folder is not None:
            self._header.check_own()
            self._header.write(header | {"ended": True})  # from now on, an earlier try submits nothing more
        jobs = self._recorded_jobs(header, self._load_record(retried=False))
        flow, reason = str(header["flow"]), "replaced by new jobs"
        if jobs.running and self._options.cancel_on_kill and self._options.durable:
            cancel_and_log(jobs, reason, flow, _CANCEL_SECONDS)
        elif jobs.running:
            log_left_running(jobs, reason, flow)
        self._may_have_jobs = False
        self._inputs.check()  # before the outcomes that were paid for are deleted
        if self._folder is None:
            self._log.clear()
            return
        output = OutputFolder(self._folder)
        files = output.files()  # not those of a later try, which may begin from now on
        self._header.check_own()
        self._log.clear()
        output.remove(files)

    def _new_header(self, started: float, *, first: bool) -> dict[str, Any]:
        if self._folder is not None:
            output = OutputFolder(self._folder)
            check_writable(self._folder)
            if first and output.files():
                raise NoukaiPermanentException(
                    f"output_path {self._folder} has outcomes that are not from this task: give each run its "
                    "own folder, for example with {{ run_id }}, or delete them"
                )
        header = {
            "batch_id": str(uuid.uuid4()),
            "flow": self._options.flow,
            "max_tries": self._task.max_tries,
            "inputs": self._inputs.fingerprint(),
            "total": self._inputs.total,
            "started": started,
            "first_try": self._task.try_number,
            **self._until(started),
        }
        return self._header.write(header)

    def _until(self, started: float) -> dict[str, Any]:
        limit = execution_deadline(started, self._options.execution_timeout)
        return {"until": limit if self._options.deferrable else None}

    def _task_name(self) -> str:
        key = TaskKey.of(self._context)
        return "/".join(str(part) for part in astuple(key) if part not in ("", -1))

    # How it runs, waits and ends

    def _engine_options(self, header: dict[str, Any], record: BatchRecord) -> BatchOptions:
        options = self._options
        return BatchOptions(
            flow=options.flow,
            batch_id=header["batch_id"],
            version=options.version,
            trace=options.trace,
            timeout=options.timeout,
            poll_interval=options.poll_interval,
            cancel_on_timeout=self._cancel_on_timeout if options.cancel_on_timeout else False,
            max_concurrency=options.max_concurrency,
            max_cost_usd=options.max_cost_usd,
            spent_usd=record.spent_usd,
            detach=self._detach,
            output_type=options.output_type,
        )

    def _report_progress(self, record: BatchRecord, running: int) -> None:
        now = time.monotonic()
        if now < self._next_progress:
            return
        first, self._next_progress = self._next_progress == 0.0, now + PROGRESS_SECONDS
        if not first:
            log.info("Noukai batch of %s: progress %s", self._options.flow, self._progress(record, running))
            self._push_status(record, running)

    def _publish_sessions(self, sessions: set[str]) -> None:
        """Let the API server know whose jobs to cancel if this process cannot when a user ends the task."""
        options = self._options
        if sessions != self._published and options.push_xcoms and options.cancel_on_kill:
            self._published = sessions
            value = {
                "sessions": sorted(sessions),
                "flow": options.flow,
                "cancel_with": options.noukai_conn_id,
            }
            self._task.xcom_push(_xcoms.BATCH_SESSIONS, value)

    def _progress(self, record: BatchRecord, running: int) -> str:
        return progress_text(record, total=self._inputs.total, running=running, traced=self._options.trace)

    def _push_status(self, record: BatchRecord, running: int) -> None:
        if self._options.push_xcoms:
            self._task.xcom_push(_xcoms.BATCH_STATUS, self._status(record, running))

    def _status(self, record: BatchRecord, running: int) -> dict[str, Any]:
        status = {"progress": self._progress(record, running), "running": running, **record.summary()}
        return dict(as_xcom(status)[0])

    def _wait_in_triggerer(
        self, thread: BatchThread, record: BatchRecord, header: dict[str, Any]
    ) -> NoReturn:
        options, running = self._options, thread.waiting
        until = header["until"]
        if until is not None and time.time() >= until:
            jobs = self._recorded_jobs(header, self._load_record(retried=False))
            phrase = self._cancel_or_keep(jobs)
            self._jobs_ended = True
            raise NoukaiJobTimeoutException(f"timed out; {phrase} (Noukai batch of {options.flow})")
        if options.push_xcoms:
            self._task.xcom_push(_xcoms.BATCH_ID, header["batch_id"])
        ends = [until] if until is not None else []
        if (first := thread.first_sent_at) is not None and options.timeout is not None:
            ends.append(first + options.timeout)
        deadline = min(ends, default=None)
        more = not self._inputs.exhausted and thread.stopped is None
        log.info("Noukai batch of %s: deferred (waiting in the triggerer)", options.flow)
        self._defer(
            trigger=NoukaiBatchTrigger(
                thread.session_sizes,
                batch_id=header["batch_id"],
                flow=options.flow,
                noukai_conn_id=options.noukai_conn_id,
                until=_still_running(running, more=more),
                deadline=deadline,
                poll_interval=options.poll_interval,
                cancel_on_kill=options.cancel_on_kill,
                status=self._status(record, running) if options.push_xcoms else None,
                total=self._inputs.total,
            ),
            method_name="execute_complete",
            kwargs={"noukai_conn_id": options.noukai_conn_id},
            timeout=None if deadline is None else backstop(deadline),
        )

    def _finish(self, header: dict[str, Any], record: BatchRecord) -> Any:
        options = self._options
        if not record.counts.total():
            raise NoukaiPermanentException(EMPTY)
        log.info("Noukai batch of %s: ended: %s", options.flow, self._progress(record, 0))
        check_outcomes(
            record, options.fail_on, skip_cancelled=options.on_cancelled == "skip", flow=options.flow
        )
        self._record_delivered(header)
        if self._folder is not None:
            seconds = round(time.time() - header["started"], 1)
            manifest = {"output_path": str(self._folder), "parts": sorted(record.parts), "seconds": seconds}
            return as_xcom({**record.summary(), **manifest})[0]
        return [record.outputs.get(index) for index in range(sum(record.counts.values()))]

    def _record_delivered(self, header: dict[str, Any]) -> None:
        """Record that the task has its outcomes, so that a clear starts again. A failure loses none."""
        try:
            if not self._is_replaced():  # the header in the folder is that of the next try
                self._header.write(header | {"delivered": True})
        except Exception as error:
            log.warning("Noukai batch of %s: not recorded (%s)", self._options.flow, error)


def _still_running(running: int, *, more: bool) -> int:
    """Return how many jobs may still run when the task is resumed: half, since each time takes a worker.

    Args:
        running: How many run now.
        more: Whether inputs are left, which have to wait until jobs end.
    """
    return running // 2 if more or running >= 2 * _MANY_RESULTS else 0
