"""Validation of scripts, faults and control requests, so that a mistake is reported at once and by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

# Beyond these, the clock or the memory is the limit.
_MAX_SECONDS = 1e9
_MAX_BYTES = 10**9
_MAX_DEPTH = 200


@dataclass(frozen=True, slots=True)
class Check:
    """A predicate for a value, and a phrase for what it allows."""

    passes: Callable[[Any], bool]
    allowed: str


def check_all(given: object, what: str, checks: Mapping[str, Check]) -> dict[str, Any]:
    """Check each named value. The error names what is wrong and what is allowed."""
    if not is_object(given):
        raise ValueError(f"{what} is {given!r}, but must be an object")
    for name, value in given.items():
        if name not in checks:
            raise ValueError(f"{what} has {name!r}, but may have only: {', '.join(checks) or 'nothing'}")
        if not checks[name].passes(value):
            raise ValueError(f"{what} has {name}={value!r}, but it must be {checks[name].allowed}")
    return dict(given)


def parse_json(raw: bytes) -> Any:
    """Parse JSON that can be serialized again: no NaN, no lone surrogate, and a bounded depth.

    Raises:
        ValueError: The text is no such JSON.
    """
    try:
        value: Any = json.loads(raw)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    layer: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        layer = [inner for outer in layer for inner in _inside(outer)]
        if not layer:
            return value
    raise ValueError("the JSON is nested too deeply")


def _inside(value: object) -> list[Any]:
    if is_object(value):
        return list(value.values())
    return value if is_list(value) else []


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Return whether a value is a list."""
    return isinstance(value, list)


def is_object(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Return whether a value is a JSON object."""
    return isinstance(value, Mapping)


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number, 0 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_seconds(value: object) -> bool:
    """Return whether a value is a duration in seconds, within the limit."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_SECONDS


def is_size(value: object) -> bool:
    """Return whether a value is a number of bytes that fits into memory."""
    return isinstance(value, int) and is_whole(value) and value <= _MAX_BYTES


def is_header(value: object) -> bool:
    """Return whether a value is a text that a header can carry."""
    return isinstance(value, str) and value.isascii() and value.isprintable()


def is_flag(value: object) -> bool:
    """Return whether a value is true or false."""
    return isinstance(value, bool)


def is_text(value: object) -> bool:
    """Return whether a value is a text."""
    return isinstance(value, str)


def is_objects(value: object) -> bool:
    """Return whether a value is a list of objects."""
    items: Any = value
    return isinstance(value, list | tuple) and all(isinstance(item, dict) for item in items)


SECONDS = Check(is_seconds, "a number of seconds, 0 or more, a billion at most")
WHOLE = Check(is_whole, "a whole number, 0 or more")
SIZE = Check(is_size, "a number of bytes, from 0 to a billion")
HEADER = Check(is_header, "a text of printable ASCII characters")
FLAG = Check(is_flag, "true or false")
TEXT = Check(is_text, "a text")
OBJECTS = Check(is_objects, "a list of objects")
