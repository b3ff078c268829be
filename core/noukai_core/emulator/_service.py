"""What a local Noukai consists of: its jobs, how they behave, what goes wrong, and what was asked."""

from __future__ import annotations

from collections.abc import Callable

from noukai_core.emulator._faults import Faults
from noukai_core.emulator._request_log import Changes, RequestLog
from noukai_core.emulator._script import Script
from noukai_core.emulator._state_file import StateFile


class Service:
    """Everything that the routes of the API and of the control API share."""

    def __init__(
        self,
        state_file: StateFile,
        script: Script,
        clock: Callable[[], float],
        *,
        honours_idempotency_key: bool,
    ) -> None:
        self.state_file = state_file
        self.script = script.copy()
        self.now = clock
        self.faults = Faults()
        self.changes = Changes()
        self.log = RequestLog(self.changes)
        self.honours_idempotency_key = honours_idempotency_key
        # What was submitted, by the session and by the job that it became: see `faults`.
        self.subjects: dict[str, str] = {}
        self._first_script = script

    def reset(self) -> None:
        """Go back to the beginning: no job, no fault, no request, the first script."""
        self.state_file.clear()
        self.script = self._first_script.copy()
        self.faults.reset()
        self.log.clear()
        self.subjects.clear()
        self.changes.tell()
