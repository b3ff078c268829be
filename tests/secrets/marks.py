"""Texts to search for: the key, and one that must be found, to show that the search works."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from secrets import token_hex

_BITS_OF_A_LETTER = 6


class Mark:
    """A text that occurs nowhere by chance, in the forms in which it may be written.

    Either half of it counts, so that a part is found as well. It has letters and digits only: what escapes a
    text for JSON, a URL, HTML or a shell leaves it as it is.
    """

    def __init__(self, text: str) -> None:
        if not (text.isascii() and text.isalnum() and len(text) >= 24):
            raise ValueError(f"{text!r} would be escaped, or be found by chance")
        middle = len(text) // 2
        self.text = text
        self._forms = tuple(form for half in (text[:middle], text[middle:]) for form in _forms(half.encode()))

    def is_in(self, data: bytes) -> bool:
        """Return whether a part of it is in there, as text, as hexadecimal digits or inside base64."""
        unwrapped = data.replace(b"\\n", b"").replace(b"\n", b"")
        return any(form in data or form in unwrapped for form in self._forms)

    def among(self, places: Iterable[tuple[str, bytes]]) -> set[str]:
        """Name the places that it is in."""
        return {place for place, data in places if self.is_in(data)}


def marked_key() -> tuple[str, Mark]:
    """Make a key of the usual shape, and the mark of its secret part."""
    secret = token_hex(16)
    return f"nk_test_{token_hex(4)}_{secret}", Mark(secret)


def _forms(part: bytes) -> Iterator[bytes]:
    yield part
    yield part.hex().encode()
    yield part.hex().upper().encode()
    for before in range(3):
        # The letters at both ends also depend on the text next to the part.
        encoded = base64.b64encode(bytes(before) + part)
        first = -(-before * 8 // _BITS_OF_A_LETTER)
        last = (before + len(part)) * 8 // _BITS_OF_A_LETTER
        yield encoded[first:last]
        yield encoded[first:last].translate(bytes.maketrans(b"+/", b"-_"))
