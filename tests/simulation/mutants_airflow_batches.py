"""Changes of the Airflow provider's batches that break what they promise."""

from __future__ import annotations

from tests.simulation.mutants import Mutant

_RUN = "noukai_airflow._batch_run"
_THREAD = "noukai_airflow._batch_thread"
_KILL = "noukai_airflow._batch_kill"
_LOG = "noukai_airflow._batch_log"
_POLICY = "noukai_airflow._kill_policy"
_RECORD = "noukai_core.batch_record"

MUTANTS = (
    # Which jobs a try continues with.
    Mutant(
        "a retry begins a new batch",
        _RUN,
        'return self._options.durable or header.get("try_number") == self._task.try_number',
        'return header.get("try_number") == self._task.try_number',
    ),
    Mutant(
        "a new batch leaves the jobs of the one before",
        _RUN,
        "if jobs.running and self._options.cancel_on_kill and self._options.durable:",
        "if jobs.running and self._options.cancel_on_kill and not self._options.durable:",
    ),
    Mutant(
        "the rows of earlier tries are not read",
        _LOG,
        "return range(min(first, self._try) if isinstance(first, int) else 1, self._try + 1)",
        "return range(self._try, self._try + 1)",
    ),
    Mutant(
        "submissions are recorded with what comes later",
        _RECORD,
        "        if entry.state == SUBMITTING:\n            await self.store()\n",
        "",
    ),
    # What a try does beside another one.
    Mutant(
        "a worker that Airflow has replaced goes on submitting",
        _RUN,
        "            await asyncio.to_thread(self._header.check_own)\n",
        "            pass\n",
    ),
    Mutant(
        "a worker that Airflow has replaced cancels at its deadlines",
        _RUN,
        "return self._options.durable and not self._header.is_own()",
        "return False",
    ),
    Mutant(
        "every try names its chunks alike",
        _LOG,
        "self._last_name() or secrets.token_hex(4)",
        'self._last_name() or "0"',
        also=(
            ("self._name = self._name or secrets.token_hex(4)", 'self._name = self._name or "0"'),
            ("self._name, self._chunk = secrets.token_hex(4), 0", 'self._name, self._chunk = "0", 0'),
        ),
    ),
    # How a task ends.
    Mutant(
        "outputs come in the order in which jobs ended",
        _RUN,
        "return [record.outputs.get(index) for index in range(sum(record.counts.values()))]",
        "return list(record.outputs.values())",
    ),
    Mutant(
        "deadlines cancel, although cancel_on_timeout is off",
        _RUN,
        "cancel_on_timeout=self._cancel_on_timeout if options.cancel_on_timeout else False,",
        "cancel_on_timeout=self._cancel_on_timeout,",
    ),
    Mutant(
        "an error on the last try leaves jobs that no line names",
        _RUN,
        "        if options.durable and retry_left and not replaced:\n            return\n",
        "        if options.durable and not replaced:\n            return\n",
    ),
    # What a signal does.
    Mutant(
        "a person who ends a task as it resumes leaves its jobs running",
        _RUN,
        "            if not thread.running:\n                raise",
        "            if True:\n                raise",
    ),
    Mutant(
        "a kill sees only what its own segment has submitted",
        _THREAD,
        "entries = self._record.read() if batch is None else batch.unfinished",
        "entries = {} if batch is None else batch.unfinished",
    ),
    Mutant(
        "a shutdown cancels the jobs",
        _KILL,
        "    by_user = decision is _kill_policy.KillDecision.CANCEL\n",
        "    by_user = True\n",
    ),
    Mutant(
        "cancel_on_kill is ignored on a worker",
        _KILL,
        "    if by_user and cancel_on_kill:\n",
        "    if by_user:\n",
    ),
    Mutant(
        "a person who ends a task leaves its jobs running",
        _KILL,
        "    if by_user and cancel_on_kill:\n",
        "    if by_user and not cancel_on_kill:\n",
    ),
    Mutant(
        "a signal cancels the jobs when nobody knows who sent it",
        _KILL,
        "    known: bool = False\n",
        "    known: bool = True\n",
    ),
    Mutant(
        "jobs that could not be cancelled are not named",
        _KILL,
        "    for start in range(0, len(left), _NAMES_PER_LINE):\n",
        "    for start in range(0):\n",
    ),
    Mutant(
        "a hand-over to another triggerer cancels the jobs",
        _POLICY,
        "    if job_of_task == job_id and state in _ALIVE_IN_TRIGGERER:\n        return KillDecision.KEEP",
        "    if job_of_task == job_id and state in _ALIVE_IN_TRIGGERER:\n        return KillDecision.CANCEL",
    ),
    Mutant(
        "a person who ends a deferred task leaves its jobs running",
        "noukai_airflow._cancelling_trigger",
        "                    await self.cancel()\n                    return\n",
        "                    return\n",
    ),
)
