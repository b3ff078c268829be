"""Thousands of short jobs in one triggerer process, which keeps nothing of them."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import psutil
import pytest

from devtools.processes import ServerError, wait_until
from tests.faults import scale
from tests.faults.airflow.crowd import CrowdedAirflow, submit
from tests.faults.balance import check_balance
from tests.faults.jobs import plans
from tests.faults.noukai import NoukaiProcess

WAVES, JOBS_OF_A_WAVE = (10, 1000) if scale.FULL else (3, 100)

MAX_OBJECTS_PER_JOB = 0.1
"""How much the number of Python objects may grow per job: a leak is at least one object per job."""

MAX_BYTES = 5_000_000

SETTLING_SECONDS = 120.0
"""How long what was left may take to go: asyncio keeps a cancelled timer and its context up to its time."""


@pytest.mark.timeout(1200)
def test_nothing_is_left_of_short_jobs(airflow: CrowdedAirflow, noukai: NoukaiProcess) -> None:
    """After the last wave, the triggerer has as many descriptors, tasks and objects as after the second."""
    wanted = plans(WAVES * JOBS_OF_A_WAVE)
    supervisor = psutil.Process(airflow.triggerer.pid)
    reports, counts, supervised = [], [], []
    for first in range(0, len(wanted), JOBS_OF_A_WAVE):
        jobs = submit(noukai.base_url, wanted[first : first + JOBS_OF_A_WAVE])
        reports += airflow.defer(jobs, conn_id="noukai_direct").reports()
        counts.append(airflow.census())
        supervised.append(supervisor.num_fds())
    check_balance(noukai.control.jobs(), (plan.message for plan in wanted), reports)
    before = counts[1]
    most = before["objects"] + MAX_OBJECTS_PER_JOB * (WAVES - 2) * JOBS_OF_A_WAVE
    counts[-1] = after = _settled(airflow, counts[-1], most)
    assert after["pid"] == before["pid"]
    assert after["clients"] == 0
    assert after["tasks"] == before["tasks"]
    assert after["descriptors"] == before["descriptors"]
    types = Counter(after["types"]) - Counter(before["types"])
    assert after["objects"] < most, types.most_common(20)
    assert after["bytes"] - before["bytes"] < MAX_BYTES
    wait_until(lambda: supervisor.num_fds() <= supervised[1], "the supervisor to close its files")
    for count, descriptors in zip(counts, supervised, strict=True):
        print({name: count[name] for name in ("objects", "bytes", "tasks", "clients")}, descriptors)


def _settled(airflow: CrowdedAirflow, counted: dict[str, Any], most: float) -> dict[str, Any]:
    """Count again until there are fewer objects, or for as long as that may take."""
    counts = [counted]

    def few() -> bool:
        if counts[-1]["objects"] >= most:
            counts.append(airflow.census())
        return counts[-1]["objects"] < most

    with contextlib.suppress(ServerError):
        wait_until(few, "fewer objects", SETTLING_SECONDS, pause=5.0)
    return counts[-1]
