"""The measurements of the job client as metrics of Airflow."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat import sdk

from noukai_airflow import _client_cache

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core.emulator import Emulator


class RecordingStats:
    """Records what is sent, in place of Airflow's `Stats`."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def incr(self, stat: str, count: int, tags: dict[str, str]) -> None:
        self.sent.append((stat, count, tags))

    def gauge(self, stat: str, value: float, *, delta: bool, tags: dict[str, str]) -> None:
        self.sent.append((stat, value, delta, tags))

    def timing(self, stat: str, value: timedelta, tags: dict[str, str]) -> None:
        self.sent.append((stat, type(value), tags))


def test_stats(settings: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the client measures goes to Airflow's `Stats`, each kind in its form."""
    stats = RecordingStats()
    monkeypatch.setattr(sdk, "Stats", stats)
    emulator.control.script("flow", after_seconds=0)
    _client_cache.shared_client(settings).flow("acme/demo/flow").job("x").wait(timeout_ms=60_000)
    assert stats.sent == [
        ("noukai.jobs.waiting", 1, True, {}),
        ("noukai.polls", 1, {}),
        ("noukai.jobs", 1, {"state": "completed"}),
        ("noukai.job.end_lag", timedelta, {}),
        ("noukai.jobs.waiting", -1, True, {}),
    ]
