"""Scripts: what a specification may contain, and how its layers are merged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noukai_core.emulator._validation import FLAG, OBJECTS, SECONDS, SIZE, WHOLE, Check, check_all, is_object

EVERY_FLOW = "*"
OUTCOMES = ("completed", "failed", "cancelled", "never")

# Alternatives for the duration and for the result. One in an upper layer replaces the other in a lower layer.
_ALTERNATIVES = (("after_seconds", "after_polls"), ("result", "result_bytes"))


@dataclass(frozen=True, slots=True)
class Spec:
    """How a job behaves."""

    outcome: str = "completed"
    after_seconds: float = 1.0
    after_polls: int | None = None
    result: Any = None
    result_bytes: int | None = None
    echo: bool = True
    error: str | dict[str, Any] | None = None
    progress: Sequence[dict[str, Any]] = ()
    steps: Sequence[dict[str, Any]] = ()
    visible_after_seconds: float = 0.0
    missing: bool = False
    cancel_seconds: float = 0.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Spec:
        """Return the specification with these checked values."""
        return cls(**given, echo="result" not in given)


class Script:
    """Specifications by flow: for every flow, for a slug, and for a full path."""

    def __init__(self, flows: Mapping[str, Any] | None = None) -> None:
        self._flows: dict[str, dict[str, Any]] = {}
        for flow, spec in (flows or {}).items():
            self.set(flow, spec)

    @classmethod
    def read(cls, source: Mapping[str, Any] | str | Path | None) -> Script:
        """Return a script from a mapping, or from a JSON file."""
        if source is None or isinstance(source, Mapping):
            return cls(source)
        try:
            flows: Any = json.loads(Path(source).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"the script {source} is not JSON: {error}") from None
        if not is_object(flows):
            raise ValueError(f"the script {source} must hold one object, with a specification for each slug")
        return cls(flows)

    def set(self, flow: str, spec: object) -> None:
        """Set how the jobs of a flow behave, from the next submission on."""
        self._flows[flow] = checked(spec, f"the script of {flow!r}")

    def copy(self) -> Script:
        """Return an independent copy."""
        script = Script()
        script._flows = dict(self._flows)
        return script

    def merged(self, path: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Merge the specifications for one job: of every flow, its slug, its path and its request."""
        slug = path.rpartition("/")[2]
        merged: dict[str, Any] = {}
        for layer in (self._flows.get(EVERY_FLOW), self._flows.get(slug), self._flows.get(path), request):
            merged = _merge(merged, layer or {})
        return merged


def checked(spec: object, what: str) -> dict[str, Any]:
    """Check a specification. The error names what is wrong and what is allowed."""
    given = check_all(spec, what, _CHECKS)
    for pair in _ALTERNATIVES:
        if all(name in given for name in pair):
            raise ValueError(f"{what} has both {pair[0]} and {pair[1]}, but may have only one of them")
    return given


def _merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    replaced = {name for pair in _ALTERNATIVES if upper.keys() & set(pair) for name in pair}
    return {**{name: value for name, value in lower.items() if name not in replaced}, **upper}


_CHECKS = {
    "outcome": Check(lambda value: value in OUTCOMES, f"one of {', '.join(OUTCOMES)}"),
    "after_seconds": SECONDS,
    "after_polls": WHOLE,
    "result": Check(lambda value: True, "anything that JSON can carry"),
    "result_bytes": SIZE,
    "error": Check(lambda value: isinstance(value, str | dict), "a text or an object"),
    "progress": OBJECTS,
    "steps": OBJECTS,
    "visible_after_seconds": SECONDS,
    "missing": FLAG,
    "cancel_seconds": SECONDS,
}
