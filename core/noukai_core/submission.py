"""The identity of a submission."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from noukai_core import _validation


@dataclass(frozen=True)
class Submission:
    """The identity of one submission.

    Passing the same one again is idempotent: the server is asked for its job before anything is sent. Within
    a process the client remembers what it sent. To let a later process go on after a crash, store the id,
    and `last_sent_at` before each try.

    Attributes:
        id: A UUID.
        last_sent_at: When it was last possibly sent, with a time zone; `None` when it was surely never sent.
    """

    id: str
    last_sent_at: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", _validation.session_id(self.id, "the id of a submission"))
        if self.last_sent_at is not None:
            object.__setattr__(self, "last_sent_at", _validation.moment(self.last_sent_at, "last_sent_at"))

    @classmethod
    def new(cls) -> Submission:
        """Make a fresh identity."""
        return cls(str(uuid.uuid4()))

    def headers(self, session_id: str | None = None) -> Mapping[str, str]:
        """Return the headers that carry it; the session is the submission itself unless the user has one."""
        return {"X-Session-Id": session_id or self.id, "Idempotency-Key": self.id}
