"""What importing the operators loads in a DAG file, which Airflow parses again and again."""

from __future__ import annotations

import importlib
import subprocess
import sys

import airflow.sdk
import pytest

PROGRAM = """
import sys
import airflow.sdk
from airflow.sdk import BaseOperator, BaseSensorOperator
before = set(sys.modules)
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_airflow.sensors.noukai import NoukaiJobSensor
from noukai_airflow.decorators.noukai import noukai_task
from noukai_airflow.operators.batch import NoukaiRunJobsOperator
from noukai_airflow.decorators.batch import noukai_jobs_task
loaded = set(sys.modules) - before
forbidden = ("httpx", "aiohttp", "pydantic", "noukai_core", "noukai_airflow.hooks.")
forbidden += ("noukai_airflow.triggers.",)
print(sorted(name for name in loaded if name.startswith(forbidden)))
"""


def test_importing_the_operators_loads_little() -> None:
    """Neither the hook nor the job client is loaded when a DAG is parsed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.skipif(hasattr(airflow.sdk, "RetryDecision"), reason="this Airflow has retry policies")
def test_a_retry_policy_before_airflow_3_3() -> None:
    """An Airflow without retry policies is told by its version, and not by a name that it lacks."""
    with pytest.raises(ImportError, match=r"NoukaiRetryPolicy needs Airflow 3\.3 or later, and this is 3\."):
        importlib.import_module("noukai_airflow.retry_policy")
