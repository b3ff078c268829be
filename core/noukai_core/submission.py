"""The identity of a submission, and what is stored about it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from noukai_core import _validation


@dataclass(frozen=True)
class Submission:
    """The identity of one submission.

    Passing the same one again is idempotent: the server is asked for its job before anything is sent. Within
    a process the client remembers the last 10,000 that were passed to it, and forgets those last of which it
    is not known whether they made a job. To let a later process go on after a crash, store the id and
    `last_sent_at` before each try, both in one write.

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


@dataclass(frozen=True, kw_only=True)
class SubmissionRecord:
    """What an orchestrator stores about a submission, so that a retry finds its job.

    Write it before the submission is sent, and again with the job's id.

    Attributes:
        submission_id: The id of the submission.
        flow: The flow as `org/project/slug`.
        last_sent_at: When it was last possibly sent, with a time zone; `None` when it was surely never sent.
        job_id: The job, once it is known.
    """

    submission_id: str
    flow: str
    last_sent_at: datetime | None = None
    job_id: str | None = None

    @property
    def submission(self) -> Submission:
        """The submission. If it was possibly sent, the client asks the server for its job first."""
        return Submission(self.submission_id, self.last_sent_at)

    def to_strings(self) -> dict[str, str]:
        """Return the fields that have a value, in a form that every store can keep."""
        stored = {
            "submission_id": self.submission_id,
            "flow": self.flow,
            "last_sent_at": self.last_sent_at.isoformat() if self.last_sent_at else None,
            "job_id": self.job_id,
        }
        return {name: value for name, value in stored.items() if value is not None}

    @classmethod
    def from_strings(cls, stored: Mapping[str, Any], **fields: Any) -> Self:
        """Read a record.

        Args:
            stored: What `to_strings` returned. Other names in it are ignored.
            **fields: The values of the fields that a subclass adds.

        Raises:
            ValueError: It is not a record.
        """
        texts: dict[str, Any] = {
            name: stored.get(name) for name in ("submission_id", "flow", "last_sent_at", "job_id")
        }
        if not all(text is None or isinstance(text, str) for text in texts.values()):
            raise ValueError("a field of the record is not a string")
        if not texts["submission_id"] or not texts["flow"]:
            raise ValueError("the record has no submission or no flow")
        sent = texts.pop("last_sent_at")
        last_sent_at = _validation.moment(datetime.fromisoformat(sent), "last_sent_at") if sent else None
        return cls(**texts, last_sent_at=last_sent_at, **fields)
