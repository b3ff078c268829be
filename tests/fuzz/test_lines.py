"""Outcomes as lines of JSONL: whatever text a flow returns can be written and read."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from noukai_core.batch_files import OutcomePart
from tests.fuzz.nonsense import fuzzed

# Half a surrogate pair is valid in JSON, as an escape, but not in UTF-8.
TEXT = st.text(st.characters(codec=None, exclude_categories=()))


@fuzzed()
@given(key=TEXT, output=st.recursive(TEXT | st.none(), lambda inner: st.dictionaries(TEXT, inner)))
@example(key="\ud800", output={"\udfff": "\ud83d"})
def test_any_text_is_written(key: str, output: Any) -> None:
    """A part can be encoded, has a line for each row, and gives back what went in."""
    part = OutcomePart()
    row = json.loads(json.dumps({"key": key, "output": output}))
    part.add(row)
    (line,) = part.text.encode().split(b"\n")[:-1]
    assert json.loads(line) == row
