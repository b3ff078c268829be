"""A job's progress in words."""

from __future__ import annotations

from typing import Any

import pytest

from noukai_core import JobStatus


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        ({"step": 4, "of": 10}, "40 % (4 of 10)"),
        ({"done": 1, "total": 3}, "33 % (1 of 3)"),
        ({"percent": 12.5}, "12 %"),
        ({"percent": 80, "completed": 4, "total": 10}, "80 % (4 of 10)"),
        ({"done": 0, "total": 0}, "0 of 0"),
        ({"stage": "drafting"}, '{"stage": "drafting"}'),
        ({"step": "4", "of": True}, '{"step": "4", "of": true}'),
        ({"percent": float("nan")}, '{"percent": NaN}'),
    ],
)
def test_progress_in_words(progress: dict[str, Any], expected: str) -> None:
    """A share and a count are recognised by their usual names; any other form is shown as JSON."""
    assert JobStatus(id="job-1", state="running", progress=progress).progress_text == expected


def test_progress_is_shortened() -> None:
    """A long progress is cut, and no progress has no words."""
    status = JobStatus(id="job-1", state="running", progress={"text": "x" * 1000})
    assert len(status.progress_text or "") == 200
    assert JobStatus(id="job-1", state="running").progress_text is None


def test_progress_shows_no_key() -> None:
    """Everything that resembles a key is masked."""
    key = "nk_live_12345678_0123456789abcdef0123456789abcdef"
    text = JobStatus(id="job-1", state="running", progress={"text": key}).progress_text
    assert text is not None
    assert key not in text
    assert "nk_…" in text
