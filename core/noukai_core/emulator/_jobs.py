"""One job. Its state follows from the clock and from how often it was looked at; no task runs for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from noukai_core.emulator._script import Spec

# The share of its time that a job waits for a worker before it runs.
_PENDING_SHARE = 0.1

# The parameter in which a submission to the emulator may say how its job is to behave.
OWN_SPEC = "_emulator"


@dataclass(slots=True)
class End:
    """How and when a job ended. A result or an error that is given here wins over the script's."""

    state: str
    at: float
    spec: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(slots=True)
class Job:
    """A job as it was submitted, and what happened to it since."""

    id: str
    flow: str
    created: float
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
        """The flow's own id, always the same for the same path."""
        return flow_id(self.flow)

    def settle(self, now: float) -> None:
        """Let the job end, if its time is over."""
        if self.end is not None or self.spec.outcome == "never":
            return
        if self.spec.after_polls is not None:
            if self.polls >= self.spec.after_polls:
                self.end = End(self.spec.outcome, now)
        elif now >= self.created + self.spec.after_seconds:
            self.end = End(self.spec.outcome, self.created + self.spec.after_seconds)

    def visible(self, now: float) -> bool:
        """Tell whether a worker has written the run down, before which the server does not know it."""
        return now >= self.created + self.spec.visible_after_seconds

    def state(self, now: float) -> str:
        """Tell the state, after `settle`."""
        if self.end is not None:
            return self.end.state
        return "running" if self.started(now) is not None else "pending"

    def states(self, now: float) -> list[str]:
        """Tell the states that the job has gone through."""
        ran = ["running"] if self.started(now) is not None else []
        return ["pending", *ran, *([self.end.state] if self.end else [])]

    def started(self, now: float) -> float | None:
        """Tell when the job began to run; `None` while it waits for a worker, or if cancelled there."""
        if self.spec.after_polls is not None:
            began = self.polls > 0
        else:
            now = now if self.end is None else self.end.at
            began = now >= self._begin()
        if began:
            return self._begin()
        return self.end.at if self.end is not None and self.end.state != "cancelled" else None

    def share(self, now: float) -> float:
        """Tell how much of its run is done, from 0 to 1."""
        if self.end is not None and self.end.state == "completed":
            return 1.0
        if self.spec.after_polls is not None:
            return min(1.0, self.polls / self.spec.after_polls) if self.spec.after_polls else 1.0
        whole = self.created + self.spec.after_seconds - self._begin()
        done = (now if self.end is None else self.end.at) - self._begin()
        return max(0.0, min(1.0, done / whole)) if whole > 0 else 1.0

    def progress(self, now: float) -> dict[str, Any] | None:
        """Tell how far the job is: what it was told to show, else the script's list spread over the run."""
        if self.shown_progress is not None:
            return self.shown_progress
        if not self.spec.progress or self.started(now) is None:
            return None
        last = len(self.spec.progress) - 1
        return self.spec.progress[min(last, int(self.share(now) * len(self.spec.progress)))]

    def result(self) -> Any:
        """Tell the flow's output."""
        given = self.end.spec if self.end else {}
        if "result" in given:
            return given["result"]
        size = given.get("result_bytes", self.spec.result_bytes)
        if size is not None:
            return "x" * size
        return self.input() if self.spec.echo else self.spec.result

    def input(self) -> dict[str, Any]:
        """Tell what was submitted: the message and the parameters, as far as they were given."""
        parameters: dict[str, Any] = self.body.get("parameters", {})
        given = {
            "message": self.body.get("message"),
            "parameters": {name: value for name, value in parameters.items() if name != OWN_SPEC},
        }
        return {name: value for name, value in given.items() if value}

    def error(self) -> str | dict[str, Any]:
        """Tell why the job failed."""
        given = self.end.spec.get("error") if self.end else None
        return given or self.spec.error or "The script lets this job fail."

    def _begin(self) -> float:
        pending = 0.0 if self.spec.after_polls is not None else _PENDING_SHARE * self.spec.after_seconds
        return self.created + pending


def flow_id(path: str) -> str:
    """Return the id of the flow with this path."""
    return str(uuid5(NAMESPACE_URL, f"noukai:{path}"))


def moment(seconds: float | None) -> str | None:
    """Write a point in time as the service does, in ISO 8601."""
    return (
        None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    )
