"""The percentage in a job's progress."""

from __future__ import annotations

from typing import Any

import pytest

from noukai_prefect._artifacts import percent


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        ({"percent": 40}, 40.0),
        ({"percentage": 40.5}, 40.5),
        ({"fraction": 0.25}, 25.0),
        ({"completed": 3, "total": 4}, 75.0),
        ({"current": 1, "total": 4, "step": "read"}, 25.0),
        ({"done": 1, "total": 2}, 50.0),
        ({"percent": 140}, 100.0),
        ({"percent": -1}, 0.0),
        ({"completed": 3, "total": 0}, None),
        ({"completed": 3}, None),
        ({"percent": "forty"}, None),
        ({"percent": True}, None),
        ({"percent": float("nan")}, None),
        ({"percent": 10**400}, None),
        ({"fraction": -(10**400)}, None),
        ({"done": 1, "total": 10**400}, None),
        ({"step": "read"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_percent(progress: dict[str, Any] | None, shown: float | None) -> None:
    """The usual forms give a percentage from 0 to 100; anything else gives none."""
    assert percent(progress) == shown
