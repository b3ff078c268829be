"""Text from servers and flows, made fit for logs, terminals and messages."""

from __future__ import annotations

import re
from typing import Any

from noukai_core._validation import is_list, is_mapping, without_keys

LINE_LENGTH = 500

# ECMA-48 control sequences, and strings such as OSC, with the ends that terminals accept.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# What Unicode counts as printable, and a reader does not see.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_VALUE_COST = 16


def one_line(text: str, most: int = LINE_LENGTH) -> str:
    """Make text fit for one line that a person or a terminal sees.

    Escape sequences, control characters, line breaks, bidirectional and invisible characters are removed, and
    anything that looks like a key is masked.

    Args:
        text: The text, of any length: what cannot be seen in the end is not processed.
        most: How many characters the line has at most.
    """
    cut = len(text) > 4 * most
    line = text[: 4 * most]
    if not line.isprintable() or not line.isascii():
        line = _INVISIBLE.sub("", _ESCAPE_SEQUENCE.sub(" ", line))
        line = "".join(character if character.isprintable() else " " for character in line)
    line = without_keys(" ".join(line.split()))
    return line[: most - 1] + "…" if cut or len(line) > most else line


def shortened(value: Any, most: int) -> Any:
    """Return a value of JSON as it is, or what fits into a number of characters of it.

    Args:
        value: The value. It is left as it is.
        most: About how many characters the JSON of what is returned may have.
    """
    return _Shortening(most).copy(value)


class _Shortening:
    """Copies a value until the characters that are left run out; a cut text ends in an ellipsis."""

    def __init__(self, most: int) -> None:
        self._left = most

    def copy(self, value: Any) -> Any:
        self._left -= _VALUE_COST
        if isinstance(value, str):
            return self._text(value)
        if is_mapping(value):
            return self._mapping(dict(value))
        if is_list(value):
            return self._list(list(value))
        if isinstance(value, int) and not isinstance(value, bool):
            self._left -= value.bit_length() // 3
        return value if self._left >= 0 else "…"

    def _text(self, text: str) -> str:
        most = max(self._left, 0)
        self._left -= len(text)
        return text if len(text) <= most else text[:most] + "…"

    def _mapping(self, value: dict[Any, Any]) -> dict[str, Any]:
        copied: dict[str, Any] = {}
        for name, item in value.items():
            if self._left <= 0:
                break
            copied[self._text(str(name))] = self.copy(item)
        return copied

    def _list(self, value: list[Any]) -> list[Any]:
        copied: list[Any] = []
        for item in value:
            if self._left <= 0:
                break
            copied.append(self.copy(item))
        return copied
