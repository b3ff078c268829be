"""Changes of the Prefect integration that break what it promises."""

from __future__ import annotations

from tests.simulation.mutants import Mutant

_RUN = "noukai_prefect._run"
_STORE = "noukai_prefect._job_store"
_BATCH = "noukai_prefect._batch"
_TABLE = "noukai_prefect._batch_table"
_CANCELLATION = "noukai_prefect._cancellation"

MUTANTS = (
    # One job.
    Mutant(
        "a record does not say that its submission may have been sent",
        _RUN,
        "run, replace(record, last_sent_at=_job_store.now()), f",
        "run, record, f",
    ),
    Mutant(
        "a submission is repeated as if it had never been sent",
        _RUN,
        "    submission = record.submission\n",
        "    submission = Submission(record.submission_id)\n",
    ),
    Mutant(
        "a job that is recorded is not attached to",
        _RUN,
        "    if record.job_id is None or record.ended:\n        return None\n",
        "    return None\n",
    ),
    Mutant(
        "a job that replaces another has the same submission",
        _STORE,
        "replace(_new_record(self.flow, self.slot, self.resubmission + 1), credentials",
        "replace(_new_record(self.flow, self.slot, self.resubmission), credentials",
    ),
    Mutant(
        "records are never read",
        _STORE,
        "                    self._stored[record.slot].append(record)\n",
        "                    pass\n",
    ),
    # Batches.
    Mutant(
        "the submission of a row is repeated as if it had never been sent",
        _TABLE,
        "None if row.never_sent else row.possibly_sent_at or self._possibly_sent_at",
        "None",
    ),
    Mutant(
        "the rows of a batch share a submission",
        _TABLE,
        'return str(uuid.uuid5(uuid.UUID(slot), f"{index}:{resubmission}"))',
        'return str(uuid.uuid5(uuid.UUID(slot), f"0:{resubmission}"))',
    ),
    Mutant(
        "the jobs of an earlier attempt are not attached to",
        _BATCH,
        "            if row.job_id is not None:\n",
        "            if False:\n",
    ),
    Mutant(
        "the timeout of an attached row leaves the state of the earlier attempt",
        _BATCH,
        "isinstance(error, JobFailedError | JobCancelledError)):",
        "isinstance(error, JobFailedError | JobCancelledError | JobTimeoutError)):",
    ),
    Mutant(
        "a row that times out is cancelled, although cancel_on_timeout is off",
        _BATCH,
        "if timeout is None or not self._options.cancel_on_timeout:",
        "if timeout is None:",
    ),
    Mutant(
        "a person's cancel passes over a submission that got no response",
        _BATCH,
        "        if job is None and not row.may_have_job:\n",
        "        if job is None:\n",
    ),
    Mutant(
        "a person's cancel passes over jobs that wait for their turn",
        _BATCH,
        "return_when=asyncio.FIRST_COMPLETED\n            )\n            for task in (stop, updates):",
        "return_when=asyncio.FIRST_COMPLETED\n            )\n            for row in self._table.rows:\n"
        "                row.job_id = None\n            for task in (stop, updates):",
    ),
    # Interruptions.
    Mutant(
        "a shutdown cancels",
        _CANCELLATION,
        "if flow_run.state is not None and (flow_run.state.is_cancelling()",
        "if True or (flow_run.state.is_cancelling()",
    ),
    Mutant(
        "an interruption cancels when Prefect does not tell why",
        _CANCELLATION,
        "            error,\n        )\n        return None\n",
        '            error,\n        )\n        return "interrupted"\n',
    ),
    Mutant(
        "a person's cancel leaves the jobs running",
        _CANCELLATION,
        '            return "the flow run was cancelled"\n',
        "            return None\n",
    ),
    Mutant(
        "a submission that is kept is not named",
        _CANCELLATION,
        "                _log_possibly_running(*submission_state.submission, run, LEFT_RUNNING)\n",
        "                pass\n",
    ),
    Mutant(
        "a submission whose job does not turn up is not named",
        _CANCELLATION,
        '    _log_possibly_running(flow, submission, run, "interrupted before the response")\n',
        "",
    ),
    Mutant(
        "an interrupted wait neither cancels its job nor names it",
        _RUN,
        "        if interrupts(error):\n",
        "        if False:\n",
    ),
)
