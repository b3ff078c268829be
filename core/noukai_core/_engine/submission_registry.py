"""What this process knows of its submissions, so that passing one again makes no second job."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TypeAlias

from noukai_core._validation import FlowPath

MAX_REMEMBERED = 10_000
"""How many submissions of either kind are remembered for one server and key: with a job, and unknown ones.

The oldest are forgotten first.
"""

SubmissionKey: TypeAlias = tuple[FlowPath, str]
"""A flow and the id of a submission to it."""


@dataclass(slots=True)
class SubmissionState:
    """What is known of one submission.

    Attributes:
        possibly_sent_at: When it was last possibly sent; `None` when there is surely no job.
        job_id: Its job, once that is known.
        submitted_at: When the job was submitted.
    """

    possibly_sent_at: datetime | None = None
    job_id: str | None = None
    submitted_at: datetime | None = None


class SubmissionRegistry:
    """The submissions of one process to one server, with one key. Threads share it.

    Args:
        max_remembered: How many are remembered.
    """

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._max_remembered = max_remembered
        self._with_job: OrderedDict[SubmissionKey, SubmissionState] = OrderedDict()
        self._unknown: OrderedDict[SubmissionKey, SubmissionState] = OrderedDict()
        self._busy: dict[SubmissionKey, SubmissionState] = {}
        self._lock = threading.Lock()

    def begin(self, key: SubmissionKey) -> SubmissionState | None:
        """Return what is known of a submission, for one call alone; `None` while another call has it."""
        with self._lock:
            if key in self._busy:
                return None
            known = self._with_job.pop(key, None) or self._unknown.pop(key, None)
            state = self._busy[key] = known or SubmissionState()
            return state

    def end(self, key: SubmissionKey, *, forget: bool = False) -> None:
        """Let other calls have a submission, and forget one of which there is nothing to know.

        Args:
            key: The submission.
            forget: Whether nobody will pass it again.
        """
        with self._lock:
            state = self._busy.pop(key, None)
            if state is not None and not forget:
                self._remember(key, state)

    def _remember(self, key: SubmissionKey, state: SubmissionState) -> None:
        if state.possibly_sent_at is None and state.job_id is None:
            return
        remembered = self._unknown if state.job_id is None else self._with_job
        remembered[key] = state
        if len(remembered) > self._max_remembered:
            remembered.popitem(last=False)

    def after_fork(self) -> None:
        """Make it usable in a child process, where the calls of the parent's threads do not exist."""
        self._lock = threading.Lock()
        while self._busy:
            self._remember(*self._busy.popitem())


def shared_registry(base_url: str, api_key: str, *, batches: bool = False) -> SubmissionRegistry:
    """Return the registry that every client of this process shares which has the same server and key.

    Args:
        base_url: The server.
        api_key: The key.
        batches: Whether it is the one for the submissions of batches. They are many and have a ledger, so
            they make no other one forgotten.
    """
    return _registry(base_url, hashlib.sha256(api_key.encode()).hexdigest(), batches)


_registries: list[SubmissionRegistry] = []


@cache
def _registry(base_url: str, key_digest: str, batches: bool) -> SubmissionRegistry:
    registry = SubmissionRegistry()
    _registries.append(registry)
    return registry


def _after_fork() -> None:
    for registry in _registries:
        registry.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
