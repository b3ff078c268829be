"""Texts in JSON with escapes in any order, among them halves of surrogate pairs."""

from __future__ import annotations

import json
import re

from hypothesis import example, given
from hypothesis import strategies as st

from noukai_core._api.bounded_json import parse
from tests.fuzz.nonsense import fuzzed

PARTS = (rb"\ud83d", rb"\uDE00", rb"\u0041", rb"\\", rb"\"", b"ud83d", b"ude00", b"x")
HALF = re.compile("[\ud800-\udfff]")


@fuzzed()
@given(st.lists(st.sampled_from(PARTS)))
@example([rb"\\", rb"\ud83d", rb"\\", rb"\ud83d", rb"\uDE00", rb"\\", b"ud83d", rb"\uDE00"])
def test_halves_of_surrogate_pairs(parts: list[bytes]) -> None:
    """Each half that is alone is replaced, and everything else is what Python's own parser reads."""
    body = b'"' + b"".join(parts) + b'"'
    assert parse(body, 1_000_000) == HALF.sub("\ufffd", json.loads(body))
