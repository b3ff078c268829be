"""Changes of the Airflow provider that break what it promises."""

from __future__ import annotations

from tests.simulation.mutants import Mutant

_SUBMIT = "noukai_airflow._submit"
_WAIT = "noukai_airflow._wait"
_POLICY = "noukai_airflow._kill_policy"
_STORE = "noukai_airflow._job_store"
_OPERATOR = "noukai_airflow.operators.noukai"

MUTANTS = (
    # What a try submits.
    Mutant(
        "a submission whose job is not recorded is replaced by a new one",
        _SUBMIT,
        "            return self._submit_again(record)\n        job = self._attach(",
        "            return self._submit(record)\n        job = self._attach(",
    ),
    Mutant(
        "a submission is repeated as if it had never been sent",
        _SUBMIT,
        "return self._send_recorded(request, record, record.submission)",
        "return self._send_recorded(request, record, core.Submission(record.submission_id))",
    ),
    Mutant(
        "the record of an unknown submission is forgotten",
        _SUBMIT,
        "        except core.SubmissionUnknownError:\n            raise\n",
        "        except core.SubmissionUnknownError:\n            self._store.forget()\n            raise\n",
    ),
    Mutant(
        "a submission is recorded only when its job is known",
        _SUBMIT,
        "        self._store.write(record)\n"
        "        return self._send_recorded(request, record, core.Submission(",
        "        return self._send_recorded(request, record, core.Submission(",
    ),
    Mutant(
        "a job whose status cannot be read is replaced",
        _SUBMIT,
        'attached (%s)", job.id, job.flow, error)\n            return job',
        'attached (%s)", job.id, job.flow, error)\n            return None',
    ),
    Mutant(
        "a running job is replaced",
        _SUBMIT,
        "if state == core.JobState.FAILED or (cleared",
        "if state == core.JobState.RUNNING or state == core.JobState.FAILED or (cleared",
    ),
    Mutant(
        "without a store, the jobs of earlier tries are not looked for",
        _SUBMIT,
        "                if job is not None:\n                    return job\n",
        "",
    ),
    Mutant(
        "each try has the same submission",
        _STORE,
        "(*astuple(self), try_number, resubmission)",
        "(*astuple(self), resubmission)",
    ),
    Mutant(
        "a record loses the time at which it was sent",
        _STORE,
        "return record if record.last_sent_at else None",
        "return None",
    ),
    # How a try ends.
    Mutant(
        "a deadline comes at half of the time",
        _WAIT,
        "submitted.timestamp()) + options.timeout",
        "submitted.timestamp()) + options.timeout / 2",
    ),
    Mutant(
        "a deadline cancels, although cancel_on_timeout is off",
        _WAIT,
        "        if not self._options.cancel_on_timeout:\n",
        "        if False:\n",
    ),
    Mutant(
        "a deadline says that it cancelled, and did not",
        _WAIT,
        "        outcome = core.cancel_job(self._job)\n        if outcome.log",
        "        outcome = core.CancelOutcome(self._job.id, self._job.flow)\n        if outcome.log",
    ),
    # What a signal does.
    Mutant(
        "a shutdown cancels the job",
        _POLICY,
        'if not known or replaced or state in _ALIVE_ON_WORKER or (state == "restarting" and kept):',
        "if not known or replaced:",
    ),
    Mutant(
        "a signal cancels the job when nobody knows who sent it",
        "noukai_airflow._worker_kill",
        "        outcome.error = str(error)\n",
        "        outcome.error = str(error)\n        outcome.cancel = _cancel(job, settings)\n",
    ),
    Mutant(
        "a person who ends the task leaves its job running",
        _POLICY,
        "        return KillDecision.KEEP\n    return KillDecision.CANCEL\n\n\ndef decide_in_triggerer",
        "        return KillDecision.KEEP\n    return KillDecision.KEEP\n\n\ndef decide_in_triggerer",
    ),
    Mutant(
        "a worker that Airflow has replaced is ended as if by a person",
        _POLICY,
        '{"running", "up_for_retry", "up_for_reschedule",',
        '{"running", "up_for_reschedule",',
    ),
    Mutant(
        "a worker that Airflow has replaced cancels at its deadline",
        _STORE,
        "return self._durable and store is not None and not any(store.get(RECORD_KEY) for _ in range(2))",
        "return False",
    ),
    Mutant(
        "a hand-over to another triggerer cancels the job",
        _POLICY,
        "    if job_of_task == job_id and state in _ALIVE_IN_TRIGGERER:\n        return KillDecision.KEEP",
        "    if job_of_task == job_id and state in _ALIVE_IN_TRIGGERER:\n        return KillDecision.CANCEL",
    ),
    Mutant(
        "a person who ends a deferred task leaves its job running",
        "noukai_airflow._cancelling_trigger",
        "                    await self.cancel()\n                    return\n",
        "                    return\n",
    ),
    Mutant(
        "cancel_on_kill is ignored",
        "noukai_airflow._worker_kill",
        "            return self.cancel_on_kill\n",
        "            return True\n",
    ),
)
