"""Numbers from a server or a storage, which may name anything as one."""

from __future__ import annotations

import sys
from decimal import Decimal, InvalidOperation

_MOST_COUNTED = 2**53

# The sum of larger amounts may be more than Decimal can hold.
_MOST_DIGITS = 100


def count_or_none(value: object) -> int | None:
    """Return a count. A larger number makes no sense, and what reports it may carry 64 bits only."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= _MOST_COUNTED else None


def number_or_none(value: object) -> float | None:
    """Return a finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= sys.float_info.max else None


def dollars_or_none(value: object) -> Decimal | None:
    """Return an amount of money that is not negative, and of a size that can be added up and shown."""
    try:
        text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
        amount = Decimal(text) if text and len(text) <= 10 * _MOST_DIGITS else None
    except (InvalidOperation, ValueError):  # Python refuses to write an integer of many digits
        return None
    if amount is None or not amount.is_finite() or amount < 0:
        return None
    return amount if -_MOST_DIGITS < amount.adjusted() < _MOST_DIGITS else None
