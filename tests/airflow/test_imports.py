"""The cost of importing the operators in a DAG file, which Airflow parses again and again."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, time
import airflow.sdk
from airflow.sdk import BaseOperator, BaseSensorOperator
before, began = set(sys.modules), time.perf_counter()
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_airflow.sensors.noukai import NoukaiJobSensor
from noukai_airflow.decorators.noukai import noukai_task
took = time.perf_counter() - began
loaded = set(sys.modules) - before
forbidden = ("httpx", "aiohttp", "pydantic", "noukai_core", "noukai_airflow.hooks.")
forbidden += ("noukai_airflow.triggers.",)
print(sorted(name for name in loaded if name.startswith(forbidden)), took * 1000)
"""


def test_importing_the_operators_is_cheap() -> None:
    """Neither the hook nor the job client is loaded, and it takes under 50 ms on top of `airflow.sdk`."""
    costs = []
    for _ in range(3):  # the fastest of three, since other work on the machine only makes it slower
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True
        )
        loaded, took = done.stdout.strip().splitlines()[-1].rsplit(" ", 1)
        assert loaded == "[]"
        costs.append(float(took))
        if min(costs) < 50:
            break
    assert min(costs) < 50
