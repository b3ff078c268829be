"""The operator that runs many Noukai jobs as one task."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from airflow.providers.common.compat.sdk import AirflowTaskTimeout, conf
from airflow.sdk import BaseOperator

from noukai_airflow._retries import ran_before, retry_left
from noukai_airflow.exceptions import NoukaiException, airflow_errors, permanent_if_invalid, without_frames

if TYPE_CHECKING:
    from airflow.sdk import Context, ObjectStoragePath
    from pydantic import BaseModel

    from noukai_airflow._batch_inputs import BatchInputs
    from noukai_airflow._batch_outcome import FailOn
    from noukai_airflow._batch_run import BatchRun
    from noukai_airflow._connection import ConnectionSettings
    from noukai_airflow._lineage import Lineage
    from noukai_airflow._wait import OnCancelled
    from noukai_airflow.hooks.noukai import NoukaiHook
    from noukai_core.checks import Duration


class NoukaiRunJobsOperator(BaseOperator):
    """Runs a Noukai job for each of many inputs, thousands at once, and returns what came of them.

    Every input leads to one job, even if the worker or the triggerer crashes: a retry takes the jobs that
    have completed, attaches to those that run, and submits only what is missing. The jobs are cancelled when
    a user ends or clears the task, but never by a shutdown. Progress goes to the log and to the XCom
    `batch_status`.

    Args:
        flow: The flow as `org/project/slug`, or only its slug if the connection has an organisation and a
            project. Templated, like the next two arguments, `version` and the connection.
        inputs: A list of messages, or of dicts with `message`, `parameters`, `block_overrides` and `key`
            (your own name of the input, which comes back with its outcome). Or the URI or `ObjectStoragePath`
            of a file, which is read line by line: a `.jsonl` file with one of them on each line, or a `.csv`
            file with a header, whose columns other than `message` and `key` are parameters.
        output_path: The URI or `ObjectStoragePath` of a folder for the outcomes: `part-00001-….jsonl` and so
            on, with a completed job per line, and `failed.jsonl` with the others. The manifest names the
            parts. Each run of the task needs its own folder, so it should contain `{{ run_id }}`. Without it,
            the return value is a list of the outputs, with `None` for each input that did not complete, up to
            1 MiB.
        storage_conn_id: The Airflow connection of the storage of both files. An `ObjectStoragePath` with a
            connection of its own uses that.
        output_type: A pydantic model. Outputs are returned or written with its defaults, as JSON values. An
            input whose output is no instance of it ends as `invalid_output`, and a retry submits a new job
            for it.
        version: `"production"`, `"draft"` or the number of a published version.
        trace: Whether the runs are traced. Outcomes then include tokens and cost.
        noukai_conn_id: The Airflow connection.
        max_concurrency: How many jobs may run at the same time.
        max_cost_usd: Submit nothing more once the jobs that have ended cost this much. Needs `trace`.
        fail_on: When the task fails: if `"any"` job does not complete, if `"all"` do not, or if more than a
            share of them do not, such as `0.05`.
        deferrable: Whether to wait in the triggerer instead of on a worker. Defaults to the setting
            `[operators] default_deferrable`.
        timeout: How long each job may take from its submission, in seconds or as a timedelta. `None` means no
            limit. A retry that waits on a worker gives each job that it attaches to the whole time again.
        poll_interval: A fixed pause between polls, in seconds or as a timedelta. By default the pause grows
            with the age of the jobs.
        on_cancelled: Whether a job that is cancelled on the Noukai side counts as one that did not complete
            (`"fail"`), or not at all (`"skip"`).
        cancel_on_kill: Whether to cancel the jobs when a user ends or clears the task.
        cancel_on_timeout: Whether to cancel a job that does not end in time.
        durable: Whether a retry continues with the jobs of an earlier try. Before Airflow 3.3, this and
            `deferrable` need an `output_path`.
    """

    template_fields: Sequence[str] = (  # pyright: ignore[reportIncompatibleVariableOverride]
        "flow",
        "inputs",
        "output_path",
        "version",
        "noukai_conn_id",
        "storage_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"inputs": "json"}
    ui_color = "#efe7fb"

    @permanent_if_invalid
    def __init__(
        self,
        *,
        flow: str,
        inputs: Iterable[Any] | str | ObjectStoragePath,
        output_path: str | ObjectStoragePath | None = None,
        storage_conn_id: str | None = None,
        output_type: type[BaseModel] | None = None,
        version: str | int = "production",
        trace: bool = False,
        noukai_conn_id: str = "noukai_default",
        max_concurrency: int = 1000,
        max_cost_usd: Decimal | float | str | None = None,
        fail_on: Literal["any", "all"] | float = "any",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        timeout: Duration | None = timedelta(hours=24),
        poll_interval: Duration | None = None,
        on_cancelled: OnCancelled = "fail",
        cancel_on_kill: bool = True,
        cancel_on_timeout: bool = True,
        durable: bool = True,
        **kwargs: Any,
    ) -> None:
        from noukai_airflow._batch_outcome import check_fail_on, check_max_cost
        from noukai_core import InvalidInputError
        from noukai_core.checks import check_choice, check_count, check_duration, check_flag
        from noukai_core.output_types import check_output_type

        super().__init__(**kwargs)  # pyright: ignore[reportUnknownMemberType]
        if self.multiple_outputs and output_path is None:
            raise InvalidInputError("multiple_outputs needs output_path: without, the task returns a list")
        self.flow = flow
        self.inputs = inputs
        self.output_path = output_path
        self.storage_conn_id = storage_conn_id
        self.output_type = check_output_type(output_type, defined=False)
        self.version = version
        self.trace = check_flag(trace, "trace")
        self.noukai_conn_id = noukai_conn_id
        self.max_concurrency = check_count(max_concurrency, "max_concurrency")
        self.max_cost_usd = check_max_cost(max_cost_usd, trace=trace)
        self.fail_on: FailOn = check_fail_on(fail_on)
        self.deferrable = check_flag(deferrable, "deferrable")
        self.timeout = None if timeout is None else check_duration(timeout, "timeout")
        self.poll_interval = None if poll_interval is None else check_duration(poll_interval, "poll_interval")
        self.on_cancelled: OnCancelled = check_choice(on_cancelled, ("fail", "skip"), "on_cancelled")
        self.cancel_on_kill = check_flag(cancel_on_kill, "cancel_on_kill")
        self.cancel_on_timeout = check_flag(cancel_on_timeout, "cancel_on_timeout")
        self.durable = check_flag(durable, "durable")
        self._run: BatchRun | None = None
        self._ended_run: BatchRun | None = None
        self._kill_requested = False

    @without_frames
    def execute(self, context: Context) -> Any:
        """Run the batch, or continue with that of an earlier try."""
        return self._guarded(context, resumed=False)

    @without_frames
    def execute_complete(self, context: Context, event: object = None) -> Any:
        """Continue after the trigger's event. It is verified: the task polls the jobs."""
        from noukai_airflow.triggers.batch import TRIGGER_FAILED

        failed = isinstance(event, dict) and cast("dict[str, Any]", event).get("reason") == TRIGGER_FAILED
        return self._guarded(context, resumed=True, can_defer=not failed)

    @without_frames
    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume the task, even if Airflow's own limit ended the deferral.

        Its DAG may name another connection by now, whose server does not have the jobs.
        """
        from noukai_airflow._batch_kill import log_unread
        from noukai_airflow._compat import TaskDeferralError, TaskDeferralTimeout

        others = dict(next_kwargs or {})
        self.noukai_conn_id = others.pop("noukai_conn_id", self.noukai_conn_id)
        try:
            return super().resume_execution(next_method, others, context)
        except TaskDeferralTimeout:
            return self._guarded(context, resumed=True)
        except TaskDeferralError as error:
            if not (self.durable and retry_left(self, context, error)):
                log_unread(self.flow, "trigger failed: lost")
            raise

    def on_kill(self) -> None:
        """Cancel the jobs if a user ends the task.

        If only the worker is stopping, leave them running, for a retry to attach to.
        """
        self._kill_requested = True
        if self._run is not None:
            self._run.kill()

    def _guarded(self, context: Context, *, resumed: bool, can_defer: bool = True) -> Any:
        """Run a segment, and raise its errors, kills and timeouts in the form that Airflow expects."""
        from noukai_airflow._batch_kill import BatchKilled, log_unread
        from noukai_airflow._compat import AirflowTaskTerminated

        started = time.time()
        try:
            with airflow_errors():
                run = self._run = self._prepare(context, resumed=resumed, can_defer=can_defer)
                if self._kill_requested:  # the signal came before there was anything to kill
                    run.kill()
                return run.segment(started)
        except BatchKilled as killed:
            if killed.by_user:
                raise AirflowTaskTerminated("A user ended the task") from None
            raise NoukaiException(f"Noukai batch of {self.flow}: {killed.phrase}") from None
        except AirflowTaskTimeout:
            timed_out, self._run = self._run, None  # Airflow calls on_kill next, which then must do nothing
            if timed_out is not None:
                timed_out.time_out()
            raise
        except KeyboardInterrupt:
            # Airflow's task processes leave SIGINT to the system: a person has stopped `airflow dags test`.
            interrupted, self._run = self._run, None
            if interrupted is not None:
                interrupted.interrupt()
            raise
        except Exception as error:
            ended, self._run = self._run, None  # on_kill then must do nothing
            self._ended_run = ended or self._ended_run
            left = retry_left(self, context, error)
            if ended is not None:
                ended.leave(retry_left=left)
            elif ran_before(context, resumed=resumed) and not (self.durable and left):
                log_unread(self.flow, "the record of its jobs was not read")
            raise
        finally:
            self._ended_run, self._run = self._run or self._ended_run, None

    def get_openlineage_facets_on_start(self) -> Lineage:
        """Report the flow and the file with the inputs to OpenLineage; there is no batch yet."""
        return self._lineage(None, None)

    def get_openlineage_facets_on_complete(self, task_instance: object) -> Lineage:
        """Report the batch and what came of it to OpenLineage, even when the task has failed."""
        run = self._ended_run
        return self._lineage(None, None) if run is None else self._lineage(run.batch_id, run.summary)

    def _lineage(self, batch_id: str | None, summary: dict[str, Any] | None) -> Lineage:
        from noukai_airflow._lineage import batch_lineage

        return batch_lineage(self.flow, batch_id, summary, inputs=self.inputs, outputs=self.output_path)

    def _prepare(self, context: Context, *, resumed: bool, can_defer: bool) -> BatchRun:
        from noukai_airflow._batch_run import BatchRun, BatchTaskOptions

        options = BatchTaskOptions(
            flow=self.flow,
            version=self.version,
            trace=self.trace,
            noukai_conn_id=self.noukai_conn_id,
            output_path=self.output_path,
            storage_conn_id=self.storage_conn_id,
            output_type=self.output_type,
            max_concurrency=self.max_concurrency,
            max_cost_usd=self.max_cost_usd,
            fail_on=self.fail_on,
            deferrable=self.deferrable,
            timeout=self.timeout,
            execution_timeout=self.execution_timeout,
            poll_interval=self.poll_interval,
            on_cancelled=self.on_cancelled,
            cancel_on_kill=self.cancel_on_kill,
            cancel_on_timeout=self.cancel_on_timeout,
            durable=self.durable,
            retry_left=retry_left(self, context),
            push_xcoms=self.do_xcom_push,
        )
        inputs = self._batch_inputs(context)
        return BatchRun(
            options, self.defer, context, self._settings, inputs, resumed=resumed, can_defer=can_defer
        )

    def _batch_inputs(self, context: Context) -> BatchInputs:
        from noukai_airflow._batch_inputs import BatchInputs

        return BatchInputs(self.inputs, self.storage_conn_id)

    @property
    def _settings(self) -> ConnectionSettings:
        return self._hook.settings

    @cached_property
    def _hook(self) -> NoukaiHook:
        from noukai_airflow.hooks.noukai import NoukaiHook

        return NoukaiHook(self.noukai_conn_id)
