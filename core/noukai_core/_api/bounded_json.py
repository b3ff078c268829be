"""JSON from a server that nobody trusts: what it would take is known before it is parsed. No I/O."""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import from_json

# What Python keeps at most for each, in bytes: a short string in a list, a dictionary, a list.
_BYTES_OF = {b",": 80, b"{": 240, b"[": 72}
_MEMORY_SHARE = 5

# The most values that a poll may parse on an event loop; of more, only the beginning is parsed.
_MANY_VALUES = 50_000
_BEGINNING = 64 * 1024

_NOT_STRUCTURE = bytes(set(range(256)) - set(b'",{['))
_STEP = 64 * 1024

_ANY_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

# A half of a surrogate pair, maybe with the other one. Whether it is one depends on the number of
# backslashes: two are an escaped backslash. Possessive quantifiers would skip what is none in one piece, but
# Python before 3.11.5 matches them wrongly (python/cpython#106052).
_SURROGATES = re.compile(
    rb"(?<!\\)(\\+)u"
    rb"(?:[dD][89abAB][0-9a-fA-F]{2}(\\u[dD][c-fC-F][0-9a-fA-F]{2})?|[dD][c-fC-F][0-9a-fA-F]{2})"
)
_REPLACEMENT_CHARACTER = b"fffd"


class TooMuchMemoryError(Exception):
    """The parsed value would take more memory than allowed."""


def parse(body: bytes, memory: int, *, partial: bool = False) -> Any:
    """Parse a body in UTF-8. Nesting beyond 200 and whole numbers beyond 4,300 digits are refused.

    Args:
        body: The body.
        memory: Bytes that the value may take in any case; more if that is no more than five times the body.
        partial: Whether the body is the beginning of one: then what is complete in it is returned.

    Raises:
        TooMuchMemoryError: The body has too many values.
        ValueError: It is not JSON.
    """
    cost, most = _cost(body), max(memory, _MEMORY_SHARE * len(body))
    if cost > most:
        raise TooMuchMemoryError
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        return from_json(body, allow_partial=partial)
    except ValueError:
        if not _ANY_SURROGATE.search(body):
            raise
    if cost + len(body) > most:
        raise TooMuchMemoryError
    return from_json(_without_lone_surrogates(body), allow_partial=partial)


def parse_beginning(body: bytes, memory: int, *, partial: bool) -> tuple[Any, bool]:
    """Parse as much of a body as an event loop has time for.

    Returns:
        The value, and whether there may be more of it.
    """
    if sum(body.count(mark) for mark in _BYTES_OF) > _MANY_VALUES:
        return parse(body[:_BEGINNING], memory, partial=True), True
    return parse(body, memory, partial=partial), partial


def _cost(body: bytes) -> int:
    """Return the most memory that the body and its values take; what is inside of texts counts only once."""
    cost = _structure_cost(body)
    if cost <= (_MEMORY_SHARE - 1) * len(body):
        return len(body) + cost
    structure = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)
    cost, in_text = 0, False
    for begin in range(0, len(structure), _STEP):
        parts = structure[begin : begin + _STEP].split(b'"')
        cost += _structure_cost(b"".join(parts[in_text::2]))
        in_text ^= len(parts) % 2 == 0
    return len(body) + cost


def _structure_cost(body: bytes) -> int:
    return sum(body.count(mark) * size for mark, size in _BYTES_OF.items())


def _without_lone_surrogates(body: bytes) -> bytearray:
    """Replace halves of surrogate pairs: they are no text, and a flow that cuts a text makes them."""
    # In place and of the same length, so that many of them take no more memory than one.
    repaired = bytearray(body)
    for found in _SURROGATES.finditer(body):
        begins_escape = (found.end(1) - found.start(1)) % 2 == 1
        alone = found.end(1) if begins_escape else found.start(2) + 1
        if begins_escape == (found.start(2) < 0):
            repaired[alone + 1 : alone + 5] = _REPLACEMENT_CHARACTER
    return repaired
