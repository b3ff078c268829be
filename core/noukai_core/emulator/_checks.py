"""Checking what a test or a script file asks of the emulator, so that a slip is told at once and by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

# Beyond these, a clock or a memory ends first.
_MOST_SECONDS = 1e9
_MOST_BYTES = 10**9
_DEEPEST = 200


@dataclass(frozen=True, slots=True)
class Check:
    """Whether a value is allowed, and in words what is."""

    passes: Callable[[Any], bool]
    allowed: str


def check_all(given: object, what: str, checks: Mapping[str, Check]) -> dict[str, Any]:
    """Check each named value; the message names what is wrong and what is allowed."""
    if not is_object(given):
        raise ValueError(f"{what} is {given!r}, but must be an object")
    for name, value in given.items():
        if name not in checks:
            raise ValueError(f"{what} has {name!r}, but may have only: {', '.join(checks) or 'nothing'}")
        if not checks[name].passes(value):
            raise ValueError(f"{what} has {name}={value!r}, but it must be {checks[name].allowed}")
    return dict(given)


def json_of(raw: bytes) -> Any:
    """Read JSON that can be written again: no NaN, no half of a surrogate pair, not nested beyond reason.

    Raises:
        ValueError: It is none.
    """
    try:
        value: Any = json.loads(raw)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    layer: list[Any] = [value]
    for _ in range(_DEEPEST):
        layer = [inner for outer in layer for inner in _inside(outer)]
        if not layer:
            return value
    raise ValueError("the JSON is nested too deeply")


def _inside(value: object) -> list[Any]:
    if is_object(value):
        return list(value.values())
    return value if is_list(value) else []


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Tell whether a value is a list."""
    return isinstance(value, list)


def is_object(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Tell whether a value is what JSON calls an object."""
    return isinstance(value, Mapping)


def is_whole(value: object) -> bool:
    """Tell whether a value is a whole number of 0 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_seconds(value: object) -> bool:
    """Tell whether a value is a duration: 0 or more, and not many years."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_SECONDS


def is_size(value: object) -> bool:
    """Tell whether a value is a number of bytes that fits into memory."""
    return isinstance(value, int) and is_whole(value) and value <= _MOST_BYTES


def is_header(value: object) -> bool:
    """Tell whether a value is a text that a header can carry."""
    return isinstance(value, str) and value.isascii() and value.isprintable()


def is_flag(value: object) -> bool:
    """Tell whether a value is true or false."""
    return isinstance(value, bool)


def is_text(value: object) -> bool:
    """Tell whether a value is a text."""
    return isinstance(value, str)


def is_objects(value: object) -> bool:
    """Tell whether a value is a list of objects."""
    items: Any = value
    return isinstance(value, list | tuple) and all(isinstance(item, dict) for item in items)


SECONDS = Check(is_seconds, "a number of seconds, 0 or more, a billion at most")
WHOLE = Check(is_whole, "a whole number, 0 or more")
SIZE = Check(is_size, "a number of bytes, from 0 to a billion")
HEADER = Check(is_header, "a text of printable ASCII characters")
FLAG = Check(is_flag, "true or false")
TEXT = Check(is_text, "a text")
OBJECTS = Check(is_objects, "a list of objects")
