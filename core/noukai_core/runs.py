"""The runs of a flow as the server lists them, and how far a reader of that list has come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from noukai_core._validation import is_list, is_mapping
from noukai_core.models import JobState

_VERSION = 1

# The server lists at most a hundred runs. More are kept, since a run may appear in the list late.
_KEPT_RUNS = 500


@dataclass(frozen=True, slots=True)
class FlowRun:
    """One run of a flow.

    Attributes:
        id: The run. For the run of a job, this is the id of the job.
        flow_id: The flow, by the id that the server gave it.
        state: A `JobState`, or the server's own word in lower case when it is none of the five.
        trigger: How the run was started, such as `job`, if the server tells.
        created_at: ISO 8601, like the two that follow; each only if the server tells.
        started_at: When a worker took the run.
        completed_at: When the run ended.
    """

    id: str
    flow_id: str
    state: str
    trigger: str | None = None
    created_at: str | None = None
    started_at: str | None = None
    completed_at: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the run has ended. A state that is not one of the five counts as not ended."""
        return isinstance(self.state, JobState) and self.state.finished

    @property
    def listed_at(self) -> datetime | None:
        """The time by which the server sorts its list, as far as it is known."""
        return _parse_time(self.created_at or self.started_at)

    def as_payload(self) -> dict[str, str]:
        """Return what an event says about the run: plain texts, without those that are unknown."""
        payload = {
            "run_id": self.id,
            "flow_id": self.flow_id,
            "state": str(self.state),
            "trigger": self.trigger,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "completed_at": self.completed_at,
        }
        return {name: value for name, value in payload.items() if value is not None}


@dataclass(frozen=True)
class RunsCursor:
    """How far a reader of a flow's runs has come. Store it as `to_json()` between two reads.

    Attributes:
        known: The newest runs that were read, by id, the newest first; each with its time in the list.
        open: The runs that were read before they ended.
    """

    known: Mapping[str, datetime | None]
    open: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, stored: object) -> RunsCursor | None:
        """Read a stored cursor; `None` if it is none."""
        if not is_mapping(stored) or stored.get("version") != _VERSION:
            return None
        known: object = stored.get("known")
        unfinished: object = stored.get("open")
        if not is_mapping(known) or not is_list(unfinished):
            return None
        times = {str(run): _parse_time(time) for run, time in known.items()}
        return cls(times, tuple(str(run) for run in unfinished))

    def to_json(self) -> dict[str, Any]:
        """Return the cursor as JSON values."""
        known = {run: None if time is None else time.isoformat() for run, time in self.known.items()}
        return {"version": _VERSION, "known": known, "open": list(self.open)}

    @property
    def begins_at(self) -> datetime | None:
        """The time in the list from which on every run is known, if the server tells times."""
        return min((time for time in self.known.values() if time is not None), default=None)

    def after(self, new: Iterable[FlowRun], unfinished: Iterable[str]) -> RunsCursor:
        """Return the cursor after a read.

        Args:
            new: The runs that were not known, the newest first.
            unfinished: The runs that have not ended.
        """
        known = [*((run.id, run.listed_at) for run in new), *self.known.items()]
        return RunsCursor(dict(known[:_KEPT_RUNS]), tuple(unfinished))


@dataclass(frozen=True)
class EndedRuns:
    """What one read of a flow's runs showed.

    Attributes:
        runs: The runs that ended since the previous read, the oldest first.
        cursor: Where the next read begins.
        complete: Whether it is certain that there were no others. The server lists the newest hundred runs
            of each state; what comes before them cannot be read.
    """

    runs: tuple[FlowRun, ...]
    cursor: RunsCursor
    complete: bool


def _parse_time(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
