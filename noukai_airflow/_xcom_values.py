"""What an XCom can hold of a flow's output, which is less than JSON can.

A value that Airflow or PostgreSQL below it refuses fails the task after its job was paid for, and each retry
as well.
"""

from __future__ import annotations

import math
import re
from typing import Any

from noukai_core import one_line

REPLACED = (
    "NaN and infinity become null, NUL and half a surrogate pair a replacement character, and a number of "
    "more than 64 bits a float, as Airflow stores none of them; output_path keeps all but NaN and infinity"
)
"""What is done to an output, for the log."""

# What the messages between a task and its supervisor can carry.
_LEAST, _MOST = -(2**63), 2**64 - 1

# PostgreSQL refuses NUL, and UTF-8 halves of surrogate pairs.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_ADVICE = "; the operator writes it to a file with output_path"
_REPLACEMENT_CHARACTER = "\ufffd"

MOST_LEVELS = 150
"""How deep an output may be nested. Airflow stores some more levels, but then cannot read them."""

_KEY = re.compile(r"[^/\\?#%\x00-\x1f\x7f]{1,512}")
_OWN_KEYS = frozenset({"noukai_job", "job_id", "job_status", "job_url"})

# Airflow takes objects with these fields for instances of classes.
_RESERVED = (frozenset({"__classname__"}), frozenset({"__id__"}), frozenset({"__type", "__var"}))


class UnreturnableError(ValueError):
    """An output is of a form that no XCom can hold."""


def as_xcom(output: Any, *, most_levels: int = MOST_LEVELS) -> tuple[Any, bool]:
    """Return an output in a form that every database of Airflow holds, and whether that is another one.

    Args:
        output: A value of JSON.
        most_levels: How deep it may be nested.

    Raises:
        UnreturnableError: There is no such form.
    """
    copying = _Copying(most_levels)
    copied = copying.copy(output)
    return (copied, True) if copying.changed else (output, False)


def check_keys(output: Any) -> None:
    """Check that each key of an output can be the key of an XCom, as `multiple_outputs` makes it one.

    Airflow puts the key into the path of a request, and does not escape it: `../other/return_value` would be
    an XCom of another task.

    Raises:
        UnreturnableError: One cannot.
    """
    if not isinstance(output, dict):
        return  # Airflow refuses that itself
    fields: dict[str, Any] = output  # pyright: ignore[reportUnknownVariableType]
    for key in fields:
        if key in _OWN_KEYS or not _KEY.fullmatch(key) or key in (".", ".."):
            why = "this package pushes itself" if key in _OWN_KEYS else "cannot be the key of an XCom"
            raise UnreturnableError(
                f"the output has the key {one_line(key, 100)!r}, which {why}; set multiple_outputs=False"
            )


class _Copying:
    def __init__(self, most_levels: int) -> None:
        self.changed = False
        self._levels_left = self._most_levels = most_levels

    def copy(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            return self._number(value)
        if isinstance(value, list | dict):
            return self._container(value)  # pyright: ignore[reportUnknownArgumentType]
        return value

    def _container(self, value: list[Any] | dict[str, Any]) -> Any:
        if self._levels_left == 0:
            raise UnreturnableError(
                f"the output is nested more than {self._most_levels} levels deep, which Airflow cannot read "
                f"again, so no XCom can hold it{_ADVICE}"
            )
        self._levels_left -= 1
        copied = [self.copy(item) for item in value] if isinstance(value, list) else self._object(value)
        self._levels_left += 1
        return copied

    def _object(self, value: dict[str, Any]) -> dict[str, Any]:
        for fields in _RESERVED:
            if fields <= value.keys():
                names = " and ".join(repr(name) for name in sorted(fields))
                raise UnreturnableError(
                    f"the output has the field {names}, which Airflow reserves, so no XCom can hold it"
                    f"{_ADVICE}"
                )
        return {self._text(name): self.copy(item) for name, item in value.items()}

    def _text(self, text: str) -> str:
        replaced = _NO_TEXT.sub(_REPLACEMENT_CHARACTER, text)
        self.changed = self.changed or replaced != text
        return replaced

    def _number(self, number: float) -> float | None:
        if isinstance(number, int) and _LEAST <= number <= _MOST:
            return number
        if isinstance(number, float) and math.isfinite(number):
            return number
        self.changed = True
        try:
            approximate = float(number)
        except OverflowError:
            return None
        return approximate if math.isfinite(approximate) else None
