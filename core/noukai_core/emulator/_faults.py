"""Faults, and which requests they affect. What a fault does to a response is in `_fault_responses`.

Whether a fault with a probability affects a request is a function of the fault's seed, of the submission, and
of the number of such calls about that job. It depends neither on ids nor on the order in which requests
arrive, so a seed gives the same faults to the same jobs in every run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from noukai_core.emulator._request_log import KINDS
from noukai_core.emulator._validation import (
    FLAG,
    HEADER,
    OBJECTS,
    SECONDS,
    TEXT,
    WHOLE,
    Check,
    check_all,
    is_header,
    is_seconds,
)

ANY = "any"


class Kind(NamedTuple):
    """A kind of fault: which call it affects by default, whether that takes effect, and its options."""

    on: str
    takes_effect: bool
    options: Mapping[str, Check]


_STATUS = Check(lambda value: value in range(200, 600), "a status code from 200 to 599")
_RETRY_AFTER = Check(
    lambda value: is_seconds(value) or is_header(value), 'a number of seconds, "http-date", or another text'
)
_BODY = Check(lambda value: value in ("json", "html"), "json or html")
_THEN = Check(lambda value: value in ("end", "stall", "repeat", "huge"), "end, stall, repeat or huge")
_DROP = {"reset": FLAG}

FAULTS = {
    "status": Kind(
        ANY,
        False,
        {
            "status": _STATUS,
            "code": TEXT,
            "message": TEXT,
            "retry_after": _RETRY_AFTER,
            "seconds": SECONDS,
            "body": _BODY,
            "takes_effect": FLAG,
        },
    ),
    "drop_before": Kind(ANY, False, _DROP),
    "drop_after": Kind(ANY, True, _DROP),
    "slow": Kind(ANY, True, {"seconds": SECONDS}),
    "truncated": Kind(ANY, True, {}),
    "nonsense": Kind(
        ANY, True, {"status": _STATUS, "body": TEXT, "content_type": HEADER, "takes_effect": FLAG}
    ),
    "not_found": Kind("poll", False, {}),
    "no_cancel": Kind("cancel", False, {"status": _STATUS}),
    "expired_key": Kind(ANY, False, {}),
    "redirect": Kind(ANY, False, {"location": HEADER, "status": _STATUS}),
    "stream": Kind("stream", True, {"then": _THEN, "after": WHOLE, "bytes": WHOLE}),
    "race": Kind("submit", True, {"seconds": SECONDS}),
    "mixed": Kind(ANY, False, {"of": OBJECTS}),
}
_CHECKS = {
    "kind": Check(lambda value: value in tuple(FAULTS), f"one of {', '.join(FAULTS)}"),
    "on": Check(lambda value: value in (ANY, *KINDS), f"one of {ANY}, {', '.join(KINDS)}"),
    "times": Check(
        lambda value: value is None or WHOLE.passes(value), "a whole number, or null for no limit"
    ),
    "flow": TEXT,
    "job_id": TEXT,
    "probability": Check(
        lambda value: isinstance(value, int | float) and 0 <= value <= 1, "a number from 0 to 1"
    ),
    "seed": WHOLE,
}


class Call(NamedTuple):
    """What faults are matched with: one request, and the submission that it concerns."""

    kind: str
    flow: str | None
    job_id: str | None
    subject: str


@dataclass(slots=True)
class Fault:
    """A fault that is switched on."""

    id: int
    kind: str
    on: str
    times: int | None
    flow: str | None
    job_id: str | None
    probability: float | None
    seed: int
    options: dict[str, Any]
    of: list[Fault] = field(default_factory=list["Fault"])
    met: int = 0
    _calls: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])

    @classmethod
    def from_request(cls, number: int, given: Mapping[str, Any]) -> Fault:
        """Return the fault that a test requests."""
        kind = given.get("kind")
        options = dict(FAULTS[kind].options) if isinstance(kind, str) and kind in FAULTS else {}
        values = check_all(given, f"the fault {kind!r}", {**_CHECKS, **options})
        if "kind" not in values:
            raise ValueError(f"the fault has no kind: one of {', '.join(FAULTS)}")
        probability = values.get("probability")
        return cls(
            id=number,
            kind=values["kind"],
            on=values.get("on", FAULTS[values["kind"]].on),
            times=values.get("times", 1 if probability is None else None),
            flow=values.get("flow"),
            job_id=values.get("job_id"),
            probability=probability,
            seed=values.get("seed", 0),
            options={name: value for name, value in values.items() if name in options},
            of=list(_parts(number, values.get("of", []))),
        )

    @property
    def takes_effect(self) -> bool:
        """Whether an affected request is processed despite the bad response."""
        return bool(self.options.get("takes_effect", FAULTS[self.kind].takes_effect))

    def affecting(self, call: Call) -> Fault | None:
        """Return the fault that affects a request: this one, one of its parts, or none."""
        parts = [part for part in self.of if part._concerns(call)]
        if not self._concerns(call) or (self.kind == "mixed" and not parts):
            return None
        draw = self._draw(call)
        if self.probability is not None and draw.random() >= self.probability:
            return None
        self._count()
        if not parts:
            return self
        part = draw.choice(parts)
        part._count()
        return part

    def view(self) -> dict[str, Any]:
        """Return the fault as JSON, with the number of requests that it has affected."""
        names = ("id", "kind", "on", "times", "flow", "job_id", "probability", "seed", "met")
        shown = {name: getattr(self, name) for name in names}
        return {**shown, **self.options, **({"of": [part.view() for part in self.of]} if self.of else {})}

    def _concerns(self, call: Call) -> bool:
        flows = (call.flow, (call.flow or "").rpartition("/")[2])
        return (
            self.on in (ANY, call.kind)
            and self.times != 0
            and self.job_id in (None, call.job_id)
            and (self.flow is None or self.flow in flows)
        )

    def _draw(self, call: Call) -> Random:
        self._calls[call.kind, call.subject] += 1
        nth = self._calls[call.kind, call.subject]
        return Random(f"{self.seed}/{self.id}/{call.kind}/{call.subject}/{nth}")  # noqa: S311

    def _count(self) -> None:
        self.met += 1
        if self.times is not None:
            self.times -= 1


def _parts(number: int, given: list[dict[str, Any]]) -> Iterator[Fault]:
    for part in given:
        if part.get("kind") == "mixed":
            raise ValueError("the fault 'mixed' cannot be a part of another")
        yield Fault.from_request(number, {"times": None, **part})


class Faults:
    """All active faults, in the order in which they were switched on."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._next = 1

    def add(self, given: Mapping[str, Any]) -> int:
        """Switch a fault on, and return its number."""
        fault = Fault.from_request(self._next, given)
        if fault.kind == "mixed" and not fault.of:
            raise ValueError("the fault 'mixed' has no list `of` the faults that it mixes")
        self._faults.append(fault)
        self._next += 1
        return fault.id

    def affecting(self, call: Call) -> Fault | None:
        """Return the first fault that affects a request."""
        for fault in self._faults:
            affecting = fault.affecting(call)
            if affecting is not None:
                return affecting
        return None

    def clear(self) -> None:
        """Switch all faults off."""
        self._faults.clear()

    def reset(self) -> None:
        """Switch all faults off and restart their numbers, so that seeds repeat."""
        self._faults.clear()
        self._next = 1

    def views(self) -> list[dict[str, Any]]:
        """Return the faults as JSON."""
        return [fault.view() for fault in self._faults]
