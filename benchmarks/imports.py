"""What importing the integrations adds to importing their orchestrators.

    .venv/airflow/bin/python benchmarks/imports.py
    .venv/prefect/bin/python benchmarks/imports.py

Each import runs in a separate process, several times; the quickest one counts. The first row is the
peer: the orchestrator alone, in the same run. With Airflow, a DAG file with 200 tasks is read too; its peer
is the same file with 200 of Airflow's `BashOperator`.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

ROUNDS = 15

AIRFLOW = ("import airflow.sdk", ["noukai_airflow.operators.noukai", "noukai_airflow.sensors.noukai"])
PREFECT = ("from prefect import flow, task", ["noukai_prefect"])

_PROGRAM = """
import sys, time
began = time.perf_counter()
{base}
between = time.perf_counter()
before = set(sys.modules)
{ours}
ended = time.perf_counter()
heavy = {{"httpx", "noukai_airflow.hooks.noukai", "noukai_core.client"}}
loaded = sorted(heavy & set(sys.modules) - before)
print(between - began, ended - between, ",".join(loaded) or "none")
"""


def measure(base: str, modules: list[str]) -> tuple[float, float, str]:
    """Import in a fresh process; return the seconds of both, and which heavy modules were loaded."""
    ours = "\n".join(f"import {module}" for module in modules)
    program = _PROGRAM.format(base=base, ours=ours)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    peer, added, loaded = done.stdout.split()[-3:]
    return float(peer), float(added), loaded


_DAG_FILE = """
import time
began = time.perf_counter()
from airflow.sdk import DAG
from {module} import {operator}
with DAG("dag"):
    for number in range(200):
        {operator}(task_id=f"task_{{number}}", {arguments})
print(time.perf_counter() - began)
"""
_BASH = ("airflow.providers.standard.operators.bash", "BashOperator", "bash_command='true'")
_NOUKAI = (
    "noukai_airflow.operators.noukai",
    "NoukaiRunJobOperator",
    "flow='acme/spelling/grade-3', message='Helo'",
)


def read_dag_file(module: str, operator: str, arguments: str) -> float:
    """Read a DAG file of 200 tasks in a fresh process; return the seconds."""
    program = _DAG_FILE.format(module=module, operator=operator, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def compare_dag_files() -> None:
    """Print what a DAG file of 200 tasks takes, ours beside Airflow's own."""
    rounds = [(read_dag_file(*_BASH), read_dag_file(*_NOUKAI)) for _ in range(ROUNDS)]
    peer, ours = min(r[0] for r in rounds), min(r[1] for r in rounds)
    print(f"{'a DAG file with 200 BashOperators':45} {peer * 1000:8.1f} ms")
    print(
        f"{'a DAG file with 200 NoukaiRunJobOperators':45} {ours * 1000:8.1f} ms, {ours / peer:.2f} x of it"
    )


def main() -> None:
    """Print what was measured in this environment."""
    base, modules = AIRFLOW if importlib.util.find_spec("airflow") else PREFECT
    measure(base, modules)  # the first one writes the bytecode
    rounds = [measure(base, modules) for _ in range(ROUNDS)]
    peer, added = min(r[0] for r in rounds), min(r[1] for r in rounds)
    print(f"{base:45} {peer * 1000:8.1f} ms")
    print(f"{'+ ' + ', '.join(modules):45} {added * 1000:8.1f} ms, {added / peer:.1%} of it")
    print(f"of httpx, the hook and the job client it adds: {rounds[0][2]}")
    if base == AIRFLOW[0]:
        compare_dag_files()


if __name__ == "__main__":
    main()
