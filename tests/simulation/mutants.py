"""Changes of the core that break what it promises. The simulator has teeth if it finds each of them."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of the source.

    Attributes:
        name: What is wrong then.
        module: The module that is changed.
        before: A part of its source, which is there once.
        after: What stands there instead.
    """

    name: str
    module: str
    before: str
    after: str

    def applied(self, source: str) -> str:
        """Return the source with the change."""
        if source.count(self.before) != 1:
            raise ValueError(
                f"the mutant {self.name!r} does not fit {self.module} any more: "
                f"{self.before!r} is there {source.count(self.before)} times"
            )
        return source.replace(self.before, self.after)


_SUBMIT = "noukai_core._engine.submit"
_WAIT = "noukai_core._engine.wait"
_LIMIT = "noukai_core._engine.rate_limit"
_SCHEDULE = "noukai_core._engine.schedule"
_ENDPOINTS = "noukai_core._api.endpoints"
_PARSING = "noukai_core._api.parsing"
_HANDLES = "noukai_core._handles"

MUTANTS = (
    # Submitting.
    Mutant(
        "the recovery window is inverted",
        _SUBMIT,
        "if now >= settled_at:",
        "if now <= settled_at:",
    ),
    Mutant(
        "the recovery window begins with the call, not with the end of the request",
        _SUBMIT,
        "doubtful_since, doubt = clock(), outcome",
        "doubtful_since, doubt = started, outcome",
    ),
    Mutant(
        "a submission whose outcome is unknown is sent again without a look-up",
        _SUBMIT,
        "doubtful_since, doubt = clock(), outcome",
        "doubtful_since, doubt = None, outcome",
    ),
    Mutant(
        "a response without a readable id says that there is no job",
        _SUBMIT,
        "if isinstance(error, RedirectError):",
        "if isinstance(error, InvalidResponseError):",
    ),
    Mutant(
        "409 says that there is no job",
        _SUBMIT,
        " or error.status_code == 409",
        "",
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
        "doubtful_since = None if age is None else started - max(0.0, age - longest_try)",
        "doubtful_since = None",
    ),
    Mutant(
        "an unknown submission is returned as if it had never been sent",
        _SUBMIT,
        "submission=Submission(submission.id, datetime.now(UTC)),",
        "submission=Submission(submission.id),",
    ),
    Mutant(
        "the session goes out under another id",
        _SUBMIT,
        'return {"X-Session-Id": session_id or self.id, "Idempotency-Key": self.id}',
        'return {"X-Session-Id": session_id or str(uuid.uuid4()), "Idempotency-Key": self.id}',
    ),
    Mutant(
        "a step of the session is taken for the job",
        _SUBMIT,
        'execution.trigger in (None, "job")',
        'execution.trigger in (None, "job", "step")',
    ),
    Mutant(
        "a refused connection ends a submission",
        _SUBMIT,
        "if outcome.retryable and outcome.never_processed:",
        "if False:",
    ),
    # Waiting.
    Mutant(
        "a slot is taken without an end",
        _LIMIT,
        "self._next = place + spacing",
        "self._next = place + 20 * spacing",
    ),
    Mutant(
        "the rate limit never fills",
        _LIMIT,
        "self._next = place + spacing",
        "self._next = place",
    ),
    Mutant(
        "a failed poll counts tries instead of time",
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
        "-math.inf if submitted_at is None else submitted_at + settings.not_found_grace",
        "-math.inf",
    ),
    Mutant(
        "the last poll may take as long as any other",
        _SCHEDULE,
        "return min(timeout, max(left, MIN_POLL_TIMEOUT))",
        "return timeout",
    ),
    Mutant(
        "a pause does not end at the deadline",
        _WAIT,
        "yield Sleep(min(pause, self._left()))",
        "yield Sleep(pause)",
    ),
    Mutant(
        "the pause grows twice as fast",
        _SCHEDULE,
        "AGE_SHARE = 0.10",
        "AGE_SHARE = 0.30",
    ),
    Mutant(
        "a failed job counts as cancelled",
        _ENDPOINTS,
        "return _WAITING_STATES.get(state, state)",
        'return _WAITING_STATES.get(state, "cancelled" if state == "failed" else state)',
    ),
    Mutant(
        "the result is dropped",
        _ENDPOINTS,
        'output = value.get("result")',
        'output = value.get("output")',
    ),
    Mutant(
        "an unknown state counts as completed",
        _ENDPOINTS,
        "return _WAITING_STATES.get(state, state)",
        "return _WAITING_STATES.get(state, state if state in set(JobState) else JobState.COMPLETED)",
    ),
    Mutant(
        "a wait cancels its job at the deadline",
        _WAIT,
        "raise self._timed_out()",
        'yield Send(endpoints.cancel(FlowPath("acme", "spelling", "grade-3"), self._job_id))',
    ),
    # Single calls.
    Mutant(
        "a cancel of an unknown job counts as done",
        _ENDPOINTS,
        "if response.ok or response.status_code in (409, 410):",
        "if response.ok or response.status_code in (404, 409, 410):",
    ),
    Mutant(
        "a job that was submitted a moment ago is not found",
        _HANDLES,
        "if time.monotonic() >= self._in_race_until():",
        "if True:",
    ),
    Mutant(
        "an error of the service is taken for a bug",
        _PARSING,
        "case _ if status in _TRANSIENT or status >= 500:\n            return TransientError",
        "case _ if status in _TRANSIENT or status >= 500:\n            raise KeyError(status)",
    ),
)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None and spec.origin is not None
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=_Loader(fullname, spec.origin, self._mutant)
        )


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, mutant: Mutant) -> None:
        super().__init__(fullname, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        source = self._mutant.applied(Path(self.path).read_text(encoding="utf-8"))
        return compile(source, self.path, "exec", dont_inherit=True)


def put_in(name: str) -> None:
    """Let this process import the core with a mutant in it."""
    assert "noukai_core" not in sys.modules, "the core has been imported already"
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    sys.meta_path.insert(0, _Finder(mutant))
