"""The measurements of the job client as metrics of Airflow, wherever Airflow sends its own."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from noukai_core.telemetry import INSTRUMENTS, add_receiver


def report_to_airflow() -> None:
    """Pass the measurements of this process to Airflow's `Stats`. A second time does nothing."""
    add_receiver(_to_stats)


def _to_stats(name: str, value: float, attributes: Mapping[str, str]) -> None:
    from airflow.providers.common.compat.sdk import Stats

    stats: Any = Stats
    match INSTRUMENTS[name].kind:
        case "counter":
            stats.incr(name, int(value), tags=dict(attributes))
        case "up_down_counter":
            stats.gauge(name, value, delta=True, tags=dict(attributes))
        case _:
            stats.timing(name, timedelta(seconds=value), tags=dict(attributes))
