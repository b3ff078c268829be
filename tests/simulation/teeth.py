"""Puts each mutant into a process of its own, and says which schedule finds it.

The processes are forks of one that has imported everything but the code itself, which takes long.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Iterator

from tests.simulation import mutants, parts

_AIRFLOW = (
    "tests.simulation.airflow_home",
    "airflow.sdk",
    "airflow.providers.common.compat.sdk",
    "airflow.sdk.execution_time.task_runner",
    "airflow.triggers.base",
    "httpx",
    "aiohttp",
)

_IMPORTED_BEFORE = {
    "engine": ("httpx", "aiohttp", "pydantic"),
    "batches": ("httpx", "aiohttp", "pydantic"),
    "airflow": _AIRFLOW,
    "airflow_batches": _AIRFLOW,
    "prefect": ("prefect", "prefect.artifacts", "prefect.client.orchestration", "prefect.events", "httpx"),
}


def findings(
    part: str, seed: int, schedules: int, processes: int, only: str | None = None
) -> Iterator[tuple[str, str | None]]:
    """Yield what finds each mutant of a part, or one of them: a schedule and an invariant, or nothing."""
    for module in _IMPORTED_BEFORE[part]:
        importlib.import_module(module)
    names = [mutant.name for mutant in mutants.of_part(part) if only in (None, mutant.name)]
    tasks = [(part, name, seed, schedules) for name in names]
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
        yield from pool.imap(_finding, tasks, chunksize=1)


def _finding(task: tuple[str, str, int, int]) -> tuple[str, str | None]:
    name, mutant, seed, schedules = task
    mutants.put_in(name, mutant)
    return mutant, search(name, seed, schedules)


def search(name: str, seed: int, schedules: int) -> str | None:
    """Run schedules of a part until one violates an invariant, and say which."""
    part = parts.part(name)
    with part.world():
        for number in range(seed, seed + schedules):
            if violations := part.run(number).violations:
                return f"schedule {number}: {violations[0].invariant}: {violations[0].what}"
    return None
