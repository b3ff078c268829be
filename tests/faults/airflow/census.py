"""A trigger that counts the resources of its process."""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from collections.abc import AsyncIterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
from airflow.triggers.base import BaseTrigger, TriggerEvent

from noukai_core import AsyncNoukai

_MOST_TYPES = 200
_LruCache = type(lru_cache(lambda: None))


class Census(BaseTrigger):
    """Reports the process id, and the number of descriptors, asyncio tasks, Noukai clients and objects."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "tests.faults.airflow.census.Census", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        descriptors = sorted(_descriptors())  # before the garbage collector closes leaked ones
        _empty_bounded_caches()
        gc.collect()
        objects = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
        yield TriggerEvent(
            {
                "pid": os.getpid(),
                "descriptors": descriptors,
                "tasks": len(asyncio.all_tasks()),
                "clients": objects[f"{AsyncNoukai.__module__}.{AsyncNoukai.__qualname__}"],
                "bytes": psutil.Process().memory_full_info().uss,
                "objects": objects.total(),
                "types": dict(objects.most_common(_MOST_TYPES)),
            }
        )


def _empty_bounded_caches() -> None:
    """Clear the caches with a limit, which do not grow further."""
    for one in gc.get_objects():
        ours = type(one) is _LruCache and str(one.__module__).startswith("noukai")
        if ours and one.cache_info().maxsize is not None:
            one.cache_clear()


def _descriptors() -> list[str]:
    """Return the target of each open descriptor; sockets and pipes without their numbers."""
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            names.append(os.readlink(entry).partition(":")[0])
        except FileNotFoundError:  # the one that lists the folder
            continue
    return names
