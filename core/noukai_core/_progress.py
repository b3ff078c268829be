"""A job's progress in words. Its form is the flow's own, so the usual names are recognised."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from noukai_core._text import one_line

_PERCENT = ("percent", "percentage", "pct")
_DONE = ("step", "done", "completed", "finished", "current", "completed_steps", "completedSteps")
_TOTAL = ("of", "total", "steps", "total_steps", "totalSteps")
_MAX_LENGTH = 200


def progress_text(progress: Mapping[str, Any]) -> str:
    """Return the progress as `40 % (4 of 10)`, or as JSON if neither a share nor a count is recognised."""
    percent, done, total = (_number(progress, names) for names in (_PERCENT, _DONE, _TOTAL))
    counts = None if done is None or total is None else f"{done:g} of {total:g}"
    if percent is None and done is not None and total:
        percent = 100 * done / total
    if percent is None:
        return counts or one_line(json.dumps(progress, ensure_ascii=False, default=str), _MAX_LENGTH)
    return f"{percent:.0f} % ({counts})" if counts else f"{percent:.0f} %"


def _number(progress: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    for name in names:
        value = progress.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if abs(value) <= sys.float_info.max:  # not so for infinity, for nan and for what a float cannot hold
            return float(value)
    return None
