"""How jobs behave: what a specification may say, and how the layers of a script come together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noukai_core.emulator._checks import FLAG, OBJECTS, SECONDS, SIZE, WHOLE, Check, check_all, is_object

EVERY_FLOW = "*"
OUTCOMES = ("completed", "failed", "cancelled", "never")

# How long a job takes, and what it gives, is said in one of two ways: the last word replaces the other way.
_ALTERNATIVES = (("after_seconds", "after_polls"), ("result", "result_bytes"))


@dataclass(frozen=True, slots=True)
class Spec:
    """What becomes of a job, and when."""

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
        """Make the specification that checked values describe."""
        return cls(**given, echo="result" not in given)


class Script:
    """The specifications by flow: for every flow, for a slug, and for one flow's whole path."""

    def __init__(self, flows: Mapping[str, Any] | None = None) -> None:
        self._flows: dict[str, dict[str, Any]] = {}
        for flow, spec in (flows or {}).items():
            self.set(flow, spec)

    @classmethod
    def read(cls, source: Mapping[str, Any] | str | Path | None) -> Script:
        """Take a script as it is, or read it from a JSON file."""
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
        """Let the jobs of a flow behave so, from the next submission on."""
        self._flows[flow] = checked(spec, f"the script of {flow!r}")

    def copy(self) -> Script:
        """Make a script that can be changed without changing this one."""
        script = Script()
        script._flows = dict(self._flows)
        return script

    def given(self, path: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Put together what holds for one job: every flow's, the slug's, the path's, the request's own."""
        slug = path.rpartition("/")[2]
        merged: dict[str, Any] = {}
        for layer in (self._flows.get(EVERY_FLOW), self._flows.get(slug), self._flows.get(path), request):
            merged = _over(merged, layer or {})
        return merged


def checked(spec: object, what: str) -> dict[str, Any]:
    """Check a specification; the message names what is wrong in it and what is allowed."""
    given = check_all(spec, what, _CHECKS)
    for pair in _ALTERNATIVES:
        if all(name in given for name in pair):
            raise ValueError(f"{what} has both {pair[0]} and {pair[1]}, but only one of them can hold")
    return given


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
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
