"""What is simulated: the core's engine, its batches, or both below the code of Airflow or of Prefect."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.simulation.explore import Outcome


class Part(NamedTuple):
    """One part.

    Attributes:
        name: Its name.
        world: Where its schedules run.
        run: Runs one of them, by its seed.
    """

    name: str
    world: Callable[[], AbstractContextManager[None]]
    run: Callable[..., Outcome]


_FUNCTIONS = {
    "engine": ("explore", "virtual_time", "run"),
    "batches": ("explore_batches", "batch_time", "run_batches"),
    "airflow": ("explore_airflow", "airflow_time", "run_airflow"),
    "airflow_batches": ("explore_airflow_batches", "airflow_batch_time", "run_airflow_batches"),
    "prefect": ("explore_prefect", "prefect_time", "run_prefect"),
}

NAMES = tuple(_FUNCTIONS)


def part(name: str) -> Part:
    """Return a part. Its code is imported only now: a mutant may change it, its packages may be missing."""
    if name.startswith("airflow"):
        importlib.import_module("tests.simulation.airflow_home")
    module, world, run = _FUNCTIONS[name]
    functions = importlib.import_module(f"tests.simulation.{module}")
    return Part(name, getattr(functions, world), getattr(functions, run))
