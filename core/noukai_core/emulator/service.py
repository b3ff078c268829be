"""What a local Noukai consists of: its jobs, how they behave, what goes wrong, and what was asked."""

from __future__ import annotations

from collections.abc import Callable

from .book import Book
from .faults import Faults
from .log import Changes, RequestLog
from .script import Script


class Service:
    """Everything that the routes of the API and of the control API share."""

    def __init__(
        self, book: Book, script: Script, clock: Callable[[], float], *, honours_idempotency_key: bool
    ) -> None:
        self.book = book
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
        self.book.clear()
        self.script = self._first_script.copy()
        self.faults.reset()
        self.log.clear()
        self.subjects.clear()
        self.changes.tell()
