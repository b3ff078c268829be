"""Changes of the Prefect integration that break what it promises."""

from __future__ import annotations

from tests.simulation.mutants import Mutant

_RUN = "noukai_prefect._run"
_STORE = "noukai_prefect._job_store"
_BATCH = "noukai_prefect._batch"
_RECORD = "noukai_prefect._batch_record"
_SHARED_RECORD = "noukai_core.batch_record"
_LEDGER = "noukai_core.batch"
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
        "    if (job := submission_state.job) is None:\n        return None\n",
        "    return None\n",
    ),
    Mutant(
        "two live attempts submit under different ids",
        _STORE,
        'submission_id = str(uuid.uuid5(_NAMESPACE, f"{slot}:{resubmission}"))',
        "submission_id = str(uuid.uuid4())",
        also=(("return self.submission_id == expected and signer.", "return signer."),),
    ),
    Mutant(
        "a job that replaces another has the same submission",
        _STORE,
        "return self.numbered(self.resubmission + 1)",
        "return self.numbered(self.resubmission)",
    ),
    Mutant(
        "records are never read",
        _STORE,
        "                    self._stored[record.slot].append(record)\n",
        "                    pass\n",
    ),
    # Batches.
    Mutant(
        "a submission of a batch is sent before it is recorded",
        _SHARED_RECORD,
        "        if entry.state == SUBMITTING:\n            await self.store()\n",
        "",
    ),
    Mutant(
        "the inputs of a batch share a submission",
        _LEDGER,
        'return str(uuid5(batch_id, f"{index}:{resubmission}"))',
        'return str(uuid5(batch_id, f"0:{resubmission}"))',
    ),
    Mutant(
        "the jobs of an earlier attempt are not attached to",
        _RECORD,
        'return rows + [{"entry": entry.to_list()} for entry in unsure]',
        "return list[Row]()",
    ),
    Mutant(
        "an artifact of the record is replaced by the next",
        _RECORD,
        "self._artifact, self._rows, self._characters = None, [], 0",
        "self._rows, self._characters = [], 0",
    ),
    Mutant(
        "a job that times out is cancelled, although cancel_on_timeout is off",
        _BATCH,
        "cancel_on_timeout=self._cancel_on_timeout if options.cancel_on_timeout else False,",
        "cancel_on_timeout=True,",
    ),
    Mutant(
        "Prefect's timeout cancels the jobs, although cancel_on_timeout is off",
        _CANCELLATION,
        "    if run.timed_out and run.cancel_on_timeout and not await is_replaced(run):\n",
        "    if run.timed_out and not await is_replaced(run):\n",
    ),
    Mutant(
        "a person's cancel leaves the jobs of a batch running",
        _BATCH,
        "for outcome in await batch.cancel(reason):",
        "for outcome in list[Any]():",
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
        "                _log_possibly_running(*submission_state.submission, logger, why)\n",
        "                pass\n",
    ),
    Mutant(
        "a submission whose job does not turn up is not named",
        _CANCELLATION,
        '    _log_possibly_running(flow, submission, logger, "interrupted before the response")\n',
        "",
    ),
    Mutant(
        "a failed batch that a person cancels while it ends leaves its jobs running",
        _BATCH,
        "                if not interrupted and _cancellation.interrupts(error):\n",
        "                if False:\n",
    ),
    Mutant(
        "a cancel while a rerun reads its record leaves the job of the earlier attempt running",
        _CANCELLATION,
        "        if reason is not None and submission_state.earlier is not None:\n",
        "        if False:\n",
    ),
    Mutant(
        "a cancel while a batch reads its record leaves the jobs of the earlier attempt running",
        _BATCH,
        "record = self.record or await _cancellation.read_record(self._read_record(), flow, run)",
        "record = None",
    ),
    Mutant(
        "an interrupted wait neither cancels its job nor names it",
        _RUN,
        "        if interrupts(error):\n",
        "        if False:\n",
    ),
    # Attempts that live at the same time.
    Mutant(
        "an attempt that Prefect has replaced cancels its job at its deadline",
        _CANCELLATION,
        "    if await is_replaced(run):\n",
        "    if False:\n",
    ),
    Mutant(
        "an attempt that Prefect has replaced cancels its jobs at Prefect's timeout",
        _CANCELLATION,
        "    if run.timed_out and run.cancel_on_timeout and not await is_replaced(run):\n",
        "    if run.timed_out and run.cancel_on_timeout:\n",
    ),
    Mutant(
        "a batch that Prefect has replaced cancels its jobs at their deadline",
        "noukai_core.batch_deadline",
        "        return not self._replaced\n",
        "        return True\n",
    ),
    # The files of a batch.
    Mutant(
        "two live attempts write parts of the same names",
        "noukai_core.batch_files",
        "self._writer = writer or secrets.token_hex(4)",
        'self._writer = "00000000"',
    ),
    Mutant(
        "a part that was cut off counts",
        _SHARED_RECORD,
        "        if _digest(content) != part.digest:\n            return False\n",
        "",
    ),
    Mutant(
        "a part counts before it is written",
        _SHARED_RECORD,
        "            self.begun_parts[part.name] = part\n",
        "            self._read_part(part)\n",
    ),
)
