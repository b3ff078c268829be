"""The state of a local Noukai: its jobs, their script, the faults and the request log."""

from __future__ import annotations

from collections.abc import Callable

from noukai_core.emulator._faults import Faults
from noukai_core.emulator._job_store import JobStore
from noukai_core.emulator._request_log import Changes, RequestLog
from noukai_core.emulator._script import Script


class Service:
    """The state that the routes of the API and of the control API share."""

    def __init__(
        self,
        jobs: JobStore,
        script: Script,
        clock: Callable[[], float],
        *,
        honours_idempotency_key: bool,
    ) -> None:
        self.jobs = jobs
        self.script = script.copy()
        self.now = clock
        self.faults = Faults()
        self.changes = Changes()
        self.log = RequestLog(self.changes)
        self.honours_idempotency_key = honours_idempotency_key
        # What identifies a submission to the faults, by its session id and its job id: see `_faults`.
        self.subjects: dict[str, str] = {}
        self._initial_script = script

    def reset(self) -> None:
        """Restore the initial state: no jobs, faults or requests, and the initial script."""
        self.jobs.clear()
        self.script = self._initial_script.copy()
        self.faults.reset()
        self.log.clear()
        self.subjects.clear()
        self.changes.notify()
