"""Checks of arguments, before a job is submitted and has to be paid for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from noukai_core import InvalidInputError


def check_seconds(value: Any, argument: str) -> None:
    """Check an optional duration in seconds.

    Raises:
        InvalidInputError: It is not a finite number above 0.
    """
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise InvalidInputError(f"{argument} is {value!r}, but must be a number of seconds above 0, or None")


def check_one_of(value: Any, allowed: Sequence[str], argument: str) -> None:
    """Check a choice.

    Raises:
        InvalidInputError: It is not one of the allowed values.
    """
    if value not in allowed:
        raise InvalidInputError(
            f"{argument} is {value!r}, but must be one of {', '.join(map(repr, allowed))}"
        )


def check_count(value: Any, argument: str) -> None:
    """Check a count.

    Raises:
        InvalidInputError: It is not a whole number above 0.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"{argument} is {value!r}, but must be a whole number above 0")
