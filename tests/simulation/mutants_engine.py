"""Changes of the core that break what it promises."""

from __future__ import annotations

from tests.simulation.mutants import Mutant

_SUBMIT = "noukai_core._engine.submit"
_SENT = "noukai_core._engine.submission_registry"
_WAIT = "noukai_core._engine.wait"
_LIMIT = "noukai_core._engine.rate_limit"
_EFFECTS = "noukai_core._engine.effects"
_SCHEDULE = "noukai_core._engine.schedule"
_ENDPOINTS = "noukai_core._api.endpoints"
_PARSING = "noukai_core._api.parsing"
_SUBMISSION = "noukai_core.submission"
_IDS = "noukai_core._api.job_ids"

MUTANTS = (
    # What is listed, and what proves that there is no job.
    Mutant(
        "an entry that cannot be read counts as no job",
        _SUBMIT,
        "    if not jobs:\n        return InvalidResponseError(",
        "    if not jobs:\n        return None\n        return InvalidResponseError(",
    ),
    Mutant(
        "an entry without a readable id is passed over",
        _ENDPOINTS,
        "        yield Execution(\n",
        "        if _id(value) is None:\n            continue\n        yield Execution(\n",
    ),
    Mutant(
        "an entry of an unknown kind is passed over",
        _SUBMIT,
        "return _kind(execution) not in _OTHER_KINDS",
        "return _kind(execution) in _JOB_KINDS",
    ),
    Mutant(
        "a step of the session is taken for the job",
        _SUBMIT,
        '_OTHER_KINDS = ("step", "execute")',
        '_OTHER_KINDS = ("execute",)',
    ),
    Mutant(
        "any 404 to the look-up proves absence",
        _ENDPOINTS,
        "        if is_own_404(response):\n            return ()",
        "        if response.status_code == 404:\n            return ()",
    ),
    Mutant(
        "a 404 with a detail proves absence, with or without a code",
        _PARSING,
        "return isinstance(code, str) and bool(code.strip())",
        'return "detail" in mapping_of(_json(response))',
    ),
    Mutant(
        "a foreign 404 is the service's",
        _PARSING,
        "        case 404:\n            return TransientError",
        "        case 404:\n            return missing",
    ),
    Mutant(
        "a foreign 404 says that there is no route to cancel",
        _ENDPOINTS,
        "return not error.retryable and error.code not in _UNKNOWN_JOB",
        "return error.code not in _UNKNOWN_JOB",
    ),
    Mutant(
        "a list that is not one is empty",
        _ENDPOINTS,
        'raise malformed(response, operation, "has no list of executions")',
        "return ()",
    ),
    Mutant(
        "a page of the list counts as the whole",
        _ENDPOINTS,
        "whole = response.age == 0 and not _is_cut(value, len(listed))",
        "whole = response.age == 0",
    ),
    Mutant(
        "a list from a cache is believed",
        _ENDPOINTS,
        "whole = response.age == 0 and not _is_cut(value, len(listed))",
        "whole = not _is_cut(value, len(listed))",
    ),
    Mutant(
        "a 404 from a cache is the service's",
        _PARSING,
        "if response.status_code != 404 or response.age > 0:",
        "if response.status_code != 404:",
    ),
    Mutant(
        "the list of another session is believed",
        _ENDPOINTS,
        "return named is not None and uuid.UUID(named) != uuid.UUID(session_id)",
        "return False",
    ),
    # Submitting.
    Mutant(
        "any redirect says that there is no job",
        _SUBMIT,
        "(isinstance(error, RedirectError) and error.status_code in _ELSEWHERE)",
        "isinstance(error, RedirectError)",
    ),
    Mutant(
        "a date is read by the client's clock",
        _PARSING,
        '_date(response.headers.get("date", ""))',
        "None",
    ),
    Mutant(
        "the recovery window is inverted",
        _SUBMIT,
        "elif found is not None or now >= proves_from:",
        "elif found is not None or now <= proves_from:",
    ),
    Mutant(
        "the recovery window is half as long",
        _SUBMIT,
        "proves_from = unknown_since + recovery_timeout",
        "proves_from = unknown_since + recovery_timeout / 2",
    ),
    Mutant(
        "the recovery window begins with the call, not with the end of the request",
        _SUBMIT,
        "unknown_since, cause = clock(), outcome",
        "unknown_since, cause = started, outcome",
    ),
    Mutant(
        "the recovery window of a later try is shorter, by the wall clock",
        _SUBMIT,
        "unknown_since = None if state.possibly_sent_at is None else started",
        "unknown_since = None if state.possibly_sent_at is None else started - max("
        "0.0, (datetime.now(UTC) - state.possibly_sent_at).total_seconds() - 570.0)",
    ),
    Mutant(
        "a submission whose outcome is unknown is sent again without a look-up",
        _SUBMIT,
        "unknown_since, cause = clock(), outcome",
        "unknown_since, cause = None, outcome",
    ),
    Mutant(
        "a response that cannot be read says that there is no job",
        _SUBMIT,
        "if error.never_processed or (isinstance(error, RedirectError) and error.status_code in _ELSEWHERE):",
        "if error.never_processed or isinstance(error, InvalidResponseError):",
    ),
    Mutant(
        "409 says that there is no job",
        _SUBMIT,
        " or error.status_code == 409",
        "",
    ),
    Mutant(
        "a 503 with Retry-After counts as never processed",
        _PARSING,
        "never_processed=response.status_code in (425, 429)",
        "never_processed=response.status_code in ((425, 429) if pause is None else (425, 429, 503))",
    ),
    Mutant(
        "a 500 counts as never processed",
        _PARSING,
        "never_processed=response.status_code in (425, 429)",
        "never_processed=response.status_code in (425, 429, 500)",
    ),
    Mutant(
        "the last try is forgotten",
        _SUBMIT,
        "state.possibly_sent_at = state.possibly_sent_at or submission.last_sent_at",
        "pass",
    ),
    Mutant(
        "an interrupted call is forgotten",
        _SUBMIT,
        "state.possibly_sent_at = state.possibly_sent_at or submission.last_sent_at",
        "state.possibly_sent_at = submission.last_sent_at",
    ),
    Mutant(
        "two calls of one submission go at the same time",
        _SENT,
        "            if key in self._busy:\n                return None\n",
        "",
    ),
    Mutant(
        "a call that is interrupted keeps others waiting",
        _SUBMIT,
        "    finally:\n        registry.end(key, forget=not callers and state.job_id is not None)",
        "    except Exception:\n        registry.end(key)\n        raise",
    ),
    Mutant(
        "an unknown submission is returned as if it had never been sent",
        _SUBMIT,
        "submission=Submission(submission.id, state.possibly_sent_at or datetime.now(UTC)),",
        "submission=Submission.new(),",
    ),
    Mutant(
        "the session goes out under another id",
        _SUBMISSION,
        'return {"X-Session-Id": session_id or self.id, "Idempotency-Key": self.id}',
        'return {"X-Session-Id": session_id or str(uuid.uuid4()), "Idempotency-Key": self.id}',
    ),
    Mutant(
        "a refused connection is a definite end",
        _SUBMIT,
        "rejected = not (outcome.retryable and outcome.never_processed)",
        "rejected = True",
    ),
    # Two processes at a time: one that is taken for dead, and one that is forked.
    Mutant(
        "what was sent by a process that lives on counts as never sent",
        _SUBMIT,
        "state.possibly_sent_at = state.possibly_sent_at or submission.last_sent_at",
        "last = submission.last_sent_at\n"
        "    if last is not None and abs((datetime.now(UTC) - last).total_seconds()) < 5.0:\n"
        "        last = None\n"
        "    state.possibly_sent_at = state.possibly_sent_at or last",
    ),
    Mutant(
        "a later process believes the first list",
        _SUBMIT,
        "proves_from = unknown_since + recovery_timeout",
        "proves_from = unknown_since + (recovery_timeout if unknown_since < clock() else 0.0)",
    ),
    Mutant(
        "a forked child waits for the calls of its parent",
        _SENT,
        "        while self._busy:\n            self._remember(*self._busy.popitem())\n",
        "        pass\n",
    ),
    Mutant(
        "a forked child forgets what its parent has submitted",
        _SENT,
        "        while self._busy:\n            self._remember(*self._busy.popitem())\n",
        "        self._busy.clear()\n        self._unknown.clear()\n        self._with_job.clear()\n",
    ),
    # Jobs with two ids, and the ids of other jobs.
    Mutant(
        "the dashes of a UUID tell jobs apart",
        _IDS,
        'return folded[: number.start()] + number.group().replace("-", "")',
        "return folded",
    ),
    Mutant(
        "case tells jobs apart",
        _IDS,
        "folded = job_id.casefold()",
        "folded = job_id",
    ),
    Mutant(
        "a number names no other job",
        _ENDPOINTS,
        "isinstance(named, bool) or not isinstance(named, str | int)",
        "not isinstance(named, str)",
    ),
    # Waiting.
    Mutant(
        "a slot is not given back",
        _LIMIT,
        "        if slot > now:\n",
        "        if False:\n",
    ),
    Mutant(
        "slots lie twenty times as far apart",
        _LIMIT,
        "self._next = due + spacing",
        "self._next = due + 20 * spacing",
    ),
    Mutant(
        "the rate limit never fills",
        _LIMIT,
        "        slot = now + schedule.pause_until_slot(now, due)\n",
        "        slot = now\n",
    ),
    Mutant(
        "a burst is not paid for",
        _LIMIT,
        "due = max(due, self._recent[0] + self._span)",
        "pass",
    ),
    Mutant(
        "a slot after the deadline is waited for",
        _WAIT,
        "if slot - now > left:",
        "if False:",
    ),
    Mutant(
        "failed polls are counted, not timed",
        _WAIT,
        "if not error.retryable or now >= retry_window_ends:",
        "if not error.retryable or self._failures >= 3:",
    ),
    Mutant(
        "the retry window never begins again",
        _WAIT,
        "self._failures, self._last_error = 0, None\n        self._limiter",
        "self._limiter",
    ),
    Mutant(
        "the race is over at once",
        _WAIT,
        "(moment + settings.not_found_grace for moment in known if moment is not None)",
        "()",
    ),
    Mutant(
        "the last poll may take as long as any other",
        _SCHEDULE,
        "return min(timeout, max(left, min(MIN_POLL_TIMEOUT, whole)))",
        "return timeout",
    ),
    Mutant(
        "a pause does not end at the deadline",
        _WAIT,
        "yield Sleep(min(pause, self._left()))",
        "yield Sleep(pause)",
    ),
    Mutant(
        "the pause grows three times as fast",
        _SCHEDULE,
        "AGE_SHARE = 0.10",
        "AGE_SHARE = 0.30",
    ),
    Mutant(
        "`succeeded` is not known",
        _ENDPOINTS,
        '    "succeeded": JobState.COMPLETED,\n',
        "",
    ),
    Mutant(
        "a failed job counts as cancelled",
        _ENDPOINTS,
        "return _OTHER_WORDS.get(state, state)",
        'return _OTHER_WORDS.get(state, "cancelled" if state == "failed" else state)',
    ),
    Mutant(
        "a running job counts as completed",
        _ENDPOINTS,
        "return _OTHER_WORDS.get(state, state)",
        'return _OTHER_WORDS.get(state, "completed" if state == "running" else state)',
    ),
    Mutant(
        "the result is dropped",
        _ENDPOINTS,
        'output = value.get("result")',
        'output = value.get("output")',
    ),
    Mutant(
        "a wait cancels its job at the deadline",
        _WAIT,
        "        raise self._timed_out()",
        '        yield Send(endpoints.cancel(FlowPath("acme", "spelling", "grade-3"), self._job_id))\n'
        "        raise self._timed_out()",
    ),
    Mutant(
        "another job's response is believed",
        _ENDPOINTS,
        'if _is_another_job(_any(value, "executionId", "execution_id"), job_id):',
        "if False:",
    ),
    Mutant(
        "a job that was known a moment ago is not found",
        _WAIT,
        "self._race_ends = max(self._race_ends, now + self._settings.not_found_grace)",
        "pass",
    ),
    # Single calls.
    Mutant(
        "a cancel of a job that is not known counts as done",
        _ENDPOINTS,
        "if response.ok or response.status_code in (409, 410):",
        "if response.ok or response.status_code in (404, 409, 410):",
    ),
    Mutant(
        "a cancel is given up in the race, if the code is another one",
        _ENDPOINTS,
        "error.code not in _UNKNOWN_JOB",
        'error.code != "JOB_NOT_FOUND"',
    ),
    Mutant(
        "a job that was submitted a moment ago is not found",
        _EFFECTS,
        "isinstance(error, JobNotFoundError | FlowNotFoundError) and sent_at < race_ends",
        "False",
    ),
    Mutant(
        "an error of the service is a bug of the client",
        _PARSING,
        "case _ if status in _TRANSIENT or status >= 500:\n            return TransientError",
        "case _ if status in _TRANSIENT or status >= 500:\n            raise KeyError(status)",
    ),
)
