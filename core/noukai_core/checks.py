"""Checks of durations, counts, choices, flags, ids and addresses.

Each check returns the value in its plain form, and raises `InvalidInputError`, which names the argument, the
value and what is allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TypeAlias, TypeGuard, TypeVar

from noukai_core._validation import base_url, flag, flow_id, job_id, refused, shown

T = TypeVar("T")

MAX_SECONDS = 1e9
"""The longest duration, some thirty years: the sleeps of the standard library have such a limit."""

Duration: TypeAlias = float | timedelta
"""Seconds, or a timedelta."""


def check_number(value: object, argument: str, *, zero: bool = False) -> float:
    """Check a number, such as a rate.

    Args:
        value: The number.
        argument: Its name, for the message.
        zero: Whether 0 is allowed.

    Raises:
        InvalidInputError: It is not a number, not finite, negative, or 0 where that is not allowed.
    """
    return _positive(value, value, argument, "a number", zero)


def check_seconds(value: object, argument: str, *, zero: bool = False) -> float:
    """Check a duration in seconds.

    Args:
        value: The seconds.
        argument: Their name, for the message.
        zero: Whether 0 is allowed.

    Raises:
        InvalidInputError: It is not a number, not finite, negative, or 0 where that is not allowed.
    """
    return _positive(value, value, argument, "a number of seconds", zero, MAX_SECONDS)


def check_duration(value: object, argument: str, *, zero: bool = False) -> float:
    """Check a duration in seconds or as a timedelta, and return the seconds.

    Args:
        value: The duration.
        argument: Its name, for the message.
        zero: Whether 0 is allowed.

    Raises:
        InvalidInputError: It is not a duration, not finite, negative, or 0 where that is not allowed.
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    return _positive(number, value, argument, "a timedelta or a number of seconds", zero, MAX_SECONDS)


def check_count(value: object, argument: str) -> int:
    """Check a number of things.

    Args:
        value: The number.
        argument: Its name, for the message.

    Raises:
        InvalidInputError: It is not a whole number, or not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise refused(f"{argument} is {shown(value)}, but must be a whole number above 0")
    return value


def check_choice(value: T, allowed: Sequence[T], argument: str) -> T:
    """Check that a value is one of a few.

    Args:
        value: The value.
        allowed: The values to choose from.
        argument: The name of the value, for the message.

    Raises:
        InvalidInputError: It is not one of the allowed values.
    """
    if value not in allowed:
        choices = " or ".join(repr(choice) for choice in allowed)
        raise refused(f"{argument} is {shown(value)}, but must be {choices}")
    return value


def check_flag(value: object, argument: str) -> bool:
    """Check that a value is True or False, and not something that only counts as such.

    Args:
        value: The value.
        argument: Its name, for the message.

    Raises:
        InvalidInputError: It is neither.
    """
    return flag(value, argument)


def check_flow_id(value: object) -> str:
    """Check the id that the server gave a flow (`flowId` in its responses), which is not the flow's path.

    Args:
        value: The id.

    Raises:
        InvalidInputError: It is not a string, is empty, or has a slash or another character of no id.
    """
    return flow_id(value)


def check_job_id(value: object) -> str:
    """Check the id of a job.

    Args:
        value: The id, as the submission returned it.

    Raises:
        InvalidInputError: It is no text of printable ASCII without spaces or slashes.
    """
    return job_id(value)


def check_base_url(value: object) -> str:
    """Check the address of the API, and return it as a client uses it: without spaces or slashes around it.

    Args:
        value: The address, such as `https://api.noukai.dev/api/v1`.

    Raises:
        InvalidInputError: It is no http address, or has a password, a query or a fragment.
    """
    return base_url(value)


def has_keys(value: object) -> bool:
    """Tell whether to iterate over a value gives its keys, as with a dict or a table of pandas.

    Args:
        value: What may be inputs, which it then does not give.
    """
    return isinstance(value, Mapping) or callable(getattr(value, "keys", None))


def _is_finite(number: object) -> TypeGuard[float]:
    return isinstance(number, int | float) and abs(number) <= sys.float_info.max


def _positive(
    number: object, value: object, argument: str, noun: str, zero: bool, most: float = sys.float_info.max
) -> float:
    if isinstance(number, int | float) and not isinstance(number, bool):
        in_range = 0 <= number <= most
        if in_range and (number > 0 or zero):
            return float(number)
    limit = f" and at most {most:.0f}" if _is_finite(number) and number > most else ""
    raise refused(
        f"{argument} is {shown(value)}, but must be {noun}{' of 0 or more' if zero else ' above 0'}{limit}"
    )
