"""Changes of the batches that break what they promise."""

from __future__ import annotations

from tests.simulation.mutants import Mutant

_BATCH = "noukai_core._engine.batch"
_BACKOFF = "noukai_core._engine.batch_backoff"
_JOB = "noukai_core._engine.batch_job"
_CANCEL = "noukai_core._engine.batch_cancel"
_TOTALS = "noukai_core._engine.batch_totals"
_OUTCOMES = "noukai_core._engine.batch_outcomes"
_LANES = "noukai_core._engine.lanes"
_SUBMIT = "noukai_core._engine.submit"
_SESSIONS = "noukai_core._engine.sessions"
_WAIT = "noukai_core._engine.wait"

MUTANTS = (
    # One job for each input.
    Mutant(
        "a rerun does not know which jobs of a session belong to other inputs",
        _JOB,
        'others=lane.known.digests() if users is None else "",\n            state=SUBMITTING',
        'others="",\n            state=SUBMITTING',
    ),
    Mutant(
        "a session is used on after an unknown outcome",
        _LANES,
        "        if not self.had_unknown:\n            self.had_unknown = True",
        "        if False:\n            self.had_unknown = True",
    ),
    Mutant(
        "nothing is recorded before a submission",
        _JOB,
        "        if not (yield from self.record()):\n            return None\n"
        "        return (yield from self._finish_submission(effects))",
        "        return (yield from self._finish_submission(effects))",
    ),
    Mutant(
        "a rerun submits what an earlier one was submitting",
        _BATCH,
        "return stored.unfinished or stored.state == OutcomeState.COMPLETED",
        "return stored.job_id is not None or stored.state == OutcomeState.COMPLETED",
    ),
    Mutant(
        "a rerun submits what has completed",
        _BATCH,
        "return stored.unfinished or stored.state == OutcomeState.COMPLETED",
        "return stored.unfinished",
    ),
    Mutant(
        "what the user has kept is submitted again",
        _BATCH,
        "        if stored is not None and stored.kept:\n            del self._stored[index]\n"
        "            self._pass_on(index, None)\n            return None\n",
        "",
    ),
    Mutant(
        "an input that is invalid in a rerun ends the submission that an earlier run was sending",
        _JOB,
        "            return Ending(OutcomeState.UNKNOWN, error)\n        return (yield from self._finish",
        "            return Ending(OutcomeState.REJECTED, error)\n        return (yield from self._finish",
    ),
    Mutant(
        "the job of another input is taken from a connection that is out of step",
        _SUBMIT,
        "if outcome.id not in session.others and canonical_job_id(outcome.id) not in session.running:",
        "if outcome.id not in session.others:",
    ),
    Mutant(
        "a job is not the own one because another input has been given it",
        _SUBMIT,
        "unclaimed = [one for one in executions if one.id not in session.others]",
        "unclaimed = [one for one in executions if one.id not in (*session.others, *session.running)]",
    ),
    # Each input has its outcome, soon.
    Mutant(
        "an outcome that is taken makes no room for another input",
        _BATCH,
        "        outcome = self.outcomes.popleft()\n        self._room.ring_one()",
        "        outcome = self.outcomes.popleft()",
    ),
    Mutant(
        "an outcome comes before that of an earlier input",
        _OUTCOMES,
        "        if not self._in_order:",
        "        if not self._in_order or outcome is None or len(self._held) == 2:",
    ),
    Mutant(
        "a job that only the list tells of is not polled when it has ended",
        _LANES,
        "            if not self.tells_of(job):\n                job.wake.ring()",
        "            pass",
    ),
    Mutant(
        "a job is believed to run because a list of an earlier run has shown it once",
        _JOB,
        "        if self.lane is None or not believes_list:\n            return True\n",
        "        if self.lane is not None and believes_list and self.lane._listed is None:\n"
        "            self.lane._listed = {}\n        return False\n",
    ),
    Mutant(
        "a job whose time is over in the body of the loop is not polled once more",
        _WAIT,
        "return self._was_stalled() and (yield from reach_slot(self._limiter, self._clock))",
        "return False",
        also=(("if over and not self._was_stalled():", "if over:"),),
    ),
    # Only a person or a deadline ends a job.
    Mutant(
        "a job whose time is over is cancelled without being asked to",
        _JOB,
        "        if not cancels:\n            return Ending(OutcomeState.TIMED_OUT, error)",
        "        if cancels is None:\n            return Ending(OutcomeState.TIMED_OUT, error)",
    ),
    Mutant(
        "the time of a job that was left running counts from the beginning of all",
        _JOB,
        "overdue = timeout is not None and age >= timeout",
        "overdue = timeout is not None",
    ),
    Mutant(
        "a job whose time was over is forgotten when a person ends the batch",
        _BATCH,
        "            self._left_running[job.index] = job\n",
        "            pass\n",
    ),
    Mutant(
        "what an earlier run left is forgotten when a person ends the batch",
        _BATCH,
        "        return not_taken | entries",
        "        return entries",
    ),
    Mutant(
        "an interrupted submission is not looked for when a person ends the batch",
        _CANCEL,
        "    if not found:\n        log.warning(",
        "    if False:\n        log.warning(",
        also=(("        if job_id is not None:\n", "        if False:\n"),),
    ),
    # The limits.
    Mutant(
        "a batch goes on after as many failures as are allowed",
        _TOTALS,
        "            return failed >= limit",
        "            return failed > limit",
    ),
    Mutant(
        "jobs that failed cost nothing",
        _TOTALS,
        "        self.cost_usd += outcome.cost_usd or 0",
        "        self.cost_usd += (outcome.cost_usd or 0) if outcome.output is not None else 0",
    ),
    Mutant(
        "a cost that is not known stops nothing",
        _TOTALS,
        "        if outcome.lacks_cost and self.most_usd is not None:",
        "        if outcome.lacks_cost and self.most_usd is None:",
    ),
    Mutant(
        "what earlier runs have spent is forgotten",
        _TOTALS,
        "elif (spent := self.cost_usd + self._spent_usd) >= self.most_usd:",
        "elif (spent := self.cost_usd) >= self.most_usd:",
    ),
    Mutant(
        "a submission is sent again after the batch was stopped",
        _JOB,
        "            lambda: context.totals.stopped,\n",
        "            lambda: None,\n",
    ),
    Mutant(
        "a poll that is repeated has no slot of the rate limit",
        _WAIT,
        "return send_with_retries(call, clock, reach_slot=lambda: reach_slot(limiter, clock))",
        "return send_with_retries(call, clock)",
    ),
    Mutant(
        "a job that a detached run finds has timed out without a poll",
        _JOB,
        "        if overdue or (yield",
        "        if (yield",
    ),
    Mutant(
        "a lookup has no slot of the rate limit",
        _SUBMIT,
        "        if session.limiter is not None:\n",
        "        if False:\n",
    ),
    Mutant(
        "an outage uses up one input after the other",
        _BACKOFF,
        "        if self._submissions:\n            self._back_off()",
        "        self._submissions = 0",
    ),
    # The wait in a triggerer.
    Mutant(
        "the end of a step counts as that of a job",
        _SESSIONS,
        "if one.id is not None and may_be_job(one)}",
        "if one.id is not None}",
    ),
    Mutant(
        "the end of a job that an interrupted submission made counts as that of another one",
        _SESSIONS,
        "return max(size - _ended(listed), min(len(running), size))",
        "return max(size - _ended(listed), 0)",
    ),
)
