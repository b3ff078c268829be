"""Checking what a test or a script file asks of the emulator, so that a slip is told at once and by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard


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


def is_object(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Tell whether a value is what JSON calls an object."""
    return isinstance(value, Mapping)


def is_whole(value: object) -> bool:
    """Tell whether a value is a whole number of 0 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_seconds(value: object) -> bool:
    """Tell whether a value is a duration: a finite number of 0 or more."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


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


SECONDS = Check(is_seconds, "a number of seconds, 0 or more")
WHOLE = Check(is_whole, "a whole number, 0 or more")
FLAG = Check(is_flag, "true or false")
TEXT = Check(is_text, "a text")
OBJECTS = Check(is_objects, "a list of objects")
