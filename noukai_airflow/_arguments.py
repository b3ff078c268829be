"""Checks of arguments that are not templated, made when the DAG is parsed."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Literal, TypeAlias, get_args

OnCancelled: TypeAlias = Literal["fail", "skip"]
Duration: TypeAlias = float | timedelta


def seconds(value: object, argument: str, *, zero: bool = False) -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: The value is negative, not finite, or not a duration.
    """
    allowed = "a timedelta or a number of seconds" + (" of 0 or more" if zero else " above 0")
    if isinstance(value, bool) or not isinstance(value, int | float | timedelta):
        raise ValueError(f"{argument} is {value!r}, but must be {allowed}")
    number = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ValueError(f"{argument} is {value!r}, but must be {allowed}")
    return number


def on_cancelled(value: OnCancelled) -> OnCancelled:
    """Check what happens to the task if the job is cancelled on the Noukai side.

    Raises:
        ValueError: The value is not allowed.
    """
    if value not in get_args(OnCancelled):
        raise ValueError(f"on_cancelled is {value!r}, but must be 'fail' or 'skip'")
    return value
