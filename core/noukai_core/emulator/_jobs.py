"""A job. Its state follows from the clock and the number of its polls; no task runs for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from noukai_core.emulator._script import Spec

# The share of its duration that a job is pending.
_PENDING_SHARE = 0.1

# The parameter of a submission that holds the specification of its job.
JOB_SPEC_PARAMETER = "_emulator"


@dataclass(slots=True)
class End:
    """How and when a job ended. A result or error here overrides the script's."""

    state: str
    at: float
    spec: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(slots=True)
class Job:
    """A job as submitted, and what has happened to it since."""

    id: str
    flow: str
    submitted_at: float
    spec: Spec
    body: dict[str, Any]
    version: int | None = None
    session_id: str | None = None
    idempotency_key: str | None = None
    polls: int = 0
    shown_progress: dict[str, Any] | None = None
    end: End | None = None

    @property
    def slug(self) -> str:
        """The last part of the flow's path."""
        return self.flow.rpartition("/")[2]

    @property
    def flow_id(self) -> str:
        """The flow's id, which is always the same for the same path."""
        return flow_id(self.flow)

    def update(self, now: float) -> None:
        """End the job if its time has come."""
        if self.end is not None or self.spec.outcome == "never":
            return
        if self.spec.after_polls is not None:
            if self.polls >= self.spec.after_polls:
                self.end = End(self.spec.outcome, now)
        elif now >= self.submitted_at + self.spec.after_seconds:
            self.end = End(self.spec.outcome, self.submitted_at + self.spec.after_seconds)

    def visible(self, now: float) -> bool:
        """Return whether the server knows the job yet."""
        return now >= self.submitted_at + self.spec.visible_after_seconds

    def state(self, now: float) -> str:
        """Return the state, as of the last `update`."""
        if self.end is not None:
            return self.end.state
        return "running" if self.started_at(now) is not None else "pending"

    def states(self, now: float) -> list[str]:
        """List the states that the job has been in."""
        ran = ["running"] if self.started_at(now) is not None else []
        return ["pending", *ran, *([self.end.state] if self.end else [])]

    def started_at(self, now: float) -> float | None:
        """Return when the job started to run; `None` if it is pending, or was cancelled while pending."""
        if self.spec.after_polls is not None:
            began = self.polls > 0
        else:
            now = now if self.end is None else self.end.at
            began = now >= self._run_begins_at()
        if began:
            return self._run_begins_at()
        return self.end.at if self.end is not None and self.end.state != "cancelled" else None

    def share(self, now: float) -> float:
        """Return which share of the run is done, from 0 to 1."""
        if self.end is not None and self.end.state == "completed":
            return 1.0
        if self.spec.after_polls is not None:
            return min(1.0, self.polls / self.spec.after_polls) if self.spec.after_polls else 1.0
        whole = self.submitted_at + self.spec.after_seconds - self._run_begins_at()
        done = (now if self.end is None else self.end.at) - self._run_begins_at()
        return max(0.0, min(1.0, done / whole)) if whole > 0 else 1.0

    def progress(self, now: float) -> dict[str, Any] | None:
        """Return the progress: as set by the control API, or from the script's list."""
        if self.shown_progress is not None:
            return self.shown_progress
        if not self.spec.progress or self.started_at(now) is None:
            return None
        last = len(self.spec.progress) - 1
        return self.spec.progress[min(last, int(self.share(now) * len(self.spec.progress)))]

    def result(self) -> Any:
        """Return the flow's output."""
        given = self.end.spec if self.end else {}
        if "result" in given:
            return given["result"]
        size = given.get("result_bytes", self.spec.result_bytes)
        if size is not None:
            return "x" * size
        return self.input() if self.spec.echo else self.spec.result

    def input(self) -> dict[str, Any]:
        """Return the submitted message and parameters, without the parts that were not given."""
        parameters: dict[str, Any] = self.body.get("parameters", {})
        given = {
            "message": self.body.get("message"),
            "parameters": {name: value for name, value in parameters.items() if name != JOB_SPEC_PARAMETER},
        }
        return {name: value for name, value in given.items() if value}

    def error(self) -> str | dict[str, Any]:
        """Return why the job failed."""
        given = self.end.spec.get("error") if self.end else None
        return given or self.spec.error or "The script makes this job fail."

    def _run_begins_at(self) -> float:
        pending = 0.0 if self.spec.after_polls is not None else _PENDING_SHARE * self.spec.after_seconds
        return self.submitted_at + pending


def flow_id(path: str) -> str:
    """Return the id of the flow with this path."""
    return str(uuid5(NAMESPACE_URL, f"noukai:{path}"))


def timestamp(seconds: float | None) -> str | None:
    """Format a point in time as the service does, in ISO 8601."""
    return (
        None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    )
