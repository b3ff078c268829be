"""Run the test suites, several of them at the same time, each to its end.

    python -m devtools.suites airflow prefect

A suite that keeps the processor busy runs beside some that mostly wait, and after the last such suite, one
more of the others. Each suite is a separate pytest run, since an orchestrator is set up once per process. A
red suite does not stop the others: the end names every test that failed, and the folder with the logs. Needs
nothing but Python.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path
from types import FrameType

REPOSITORY = Path(__file__).parents[1]
LOGS = REPOSITORY / ".build" / "logs"

_COUNT = re.compile(r"(\d+) (passed|failed|error|skipped)")
_CLOSING_LINE = re.compile(r"^(=+ )?(\d+ \w+(, )?)+ in [\d.]+s.*$")
_FAILURE = re.compile(r"^(FAILED|ERROR) (.+?)( - .*)?$")
_SHOWN_LINES = 200

# A live Airflow takes a third of a core, a live Prefect two thirds. With one suite fewer, the last ones,
# which wait most of the time, leave the processors of a quiet machine idle for minutes.
_WAITING_AT_ONCE = (os.cpu_count() or 2) + 1


@dataclass(frozen=True)
class Suite:
    """One folder of tests in one environment.

    Attributes:
        environment: The folder below `.venv`.
        path: The tests, below `tests`.
        processes: How many processes share the tests.
        variables: Environment variables that the suite is run with.
        busy: Whether it takes all the processor time there is. Such suites run one after the other.
        traced: Whether the lines and branches that it reaches are recorded.
    """

    environment: str
    path: str
    processes: int = 1
    variables: dict[str, str] = field(default_factory=dict)
    busy: bool = False
    traced: bool = False

    def __str__(self) -> str:
        return f"tests/{self.path} in .venv/{self.environment}"

    @property
    def log(self) -> Path:
        """Where the output of its run goes."""
        name = re.sub(r"[^\w.-]+", "-", self.path).removesuffix(".py").rstrip("-")
        return LOGS / f"{self.environment}-{name}.log"

    @property
    def homes(self) -> dict[str, str]:
        """The folders of an orchestrator's user, which suites at the same time must not share."""
        home = LOGS.parent / "homes" / self.log.stem
        return {"AIRFLOW_HOME": str(home / "airflow"), "PREFECT_HOME": str(home / "prefect")}

    @property
    def command(self) -> list[str]:
        """The pytest run."""
        python = str(REPOSITORY / ".venv" / self.environment / "bin" / "python")
        shared = ["-n", str(self.processes)] if self.processes > 1 else []
        traced = ["-m", "coverage", "run"] if self.traced else []
        return [python, *traced, "-m", "pytest", "-q", "-rfE", *shared, f"tests/{self.path}"]


def _suites(environment: str, *paths: str, **variables: str) -> list[Suite]:
    simulated = ("simulation", "simulation/test_airflow.py", "simulation/test_airflow_batches.py")
    shared = ("core", "emulator", "fuzz", "faults/core", *simulated)
    return [
        Suite(environment, path, 4 if path in shared else 1, variables, path in shared or bool(variables))
        for path in paths
    ]


_FEW_SCHEDULES = "test_no_schedule_violates_an_invariant[0]"

PYTHONS = ("3.12", "3.13", "3.14")
"""What `make test-pythons` tests with, besides the Python of every other lane."""

LANES: dict[str, list[Suite]] = {
    "airflow": _suites(
        "airflow",
        "e2e_airflow",
        "dag_test",
        "faults/airflow",
        "architecture",
        "devtools",
        "packaging",
        "airflow",
        "secrets/airflow",
        "secrets/test_marks.py",
        "typing",
        "simulation/test_airflow.py",
        "simulation/test_airflow_batches.py",
    ),
    "prefect": _suites(
        "prefect",
        "e2e_prefect",
        "secrets/prefect",
        "prefect",
        "typing",
        "core",
        "emulator",
        "faults/core",
        "fuzz",
        "simulation",
    ),
    "airflow-floor": _suites("airflow-floor", "e2e_airflow", "dag_test", "airflow", "secrets/airflow"),
    "airflow-next": _suites("airflow-next", "e2e_airflow", "dag_test", "airflow", "secrets/airflow"),
    "prefect-floor": _suites("prefect-floor", "e2e_prefect", "secrets/prefect", "prefect", "core"),
    **{
        f"prefect-{version}": _suites(f"prefect-{version}", "core", "emulator", "prefect")
        for version in PYTHONS
    },
    "faults": [
        *_suites("prefect", "faults/core", "faults/prefect", FAULTS="full"),
        *_suites("airflow", "faults/airflow", FAULTS="full"),
    ],
    "latency": [
        replace(suite, processes=6)
        for suite in (
            *_suites("airflow", "airflow", PYTEST_ADDOPTS="-p devtools.latency"),
            *_suites("prefect", "core", "emulator", "prefect", PYTEST_ADDOPTS="-p devtools.latency"),
        )
    ],
    "deployment": _suites("airflow-deployment", "deployment"),
    "coverage-airflow": [
        replace(suite, traced=True)
        for suite in _suites("airflow", "airflow", f"simulation/test_airflow.py::{_FEW_SCHEDULES}")
    ],
    "coverage-prefect": [
        replace(suite, traced=True)
        for suite in _suites(
            "prefect",
            "core",
            "emulator",
            "prefect",
            *(f"simulation/test_{part}.py::{_FEW_SCHEDULES}" for part in ("batches", "engine", "prefect")),
        )
    ],
}
"""What is asked for by name: suites, the longest first. Those of several lanes take turns."""


@dataclass
class Result:
    """What came of a suite.

    Attributes:
        suite: The suite.
        returncode: pytest's.
        counts: Tests by what came of them.
        failures: The tests that failed.
    """

    suite: Suite
    returncode: int
    counts: Counter[str]
    failures: list[str]

    @classmethod
    def read(cls, suite: Suite, returncode: int) -> Result:
        """Read the log of a suite that has ended."""
        counts: Counter[str] = Counter()
        failures = []
        for line in suite.log.read_text(errors="replace").splitlines():
            if failure := _FAILURE.match(line):
                failures.append(failure[2])
            elif _CLOSING_LINE.match(line):
                counts = Counter({what: int(number) for number, what in _COUNT.findall(line)})
        return cls(suite, returncode, counts, failures)

    @property
    def green(self) -> bool:
        """Whether tests ran, and none failed."""
        return self.returncode == 0


class Run:
    """Runs suites side by side."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._results: list[Result] = []
        self._lock = threading.Lock()
        self._stopped = False

    def all(self, suites: list[Suite]) -> list[Result]:
        """Run suites to their end, and return what came of every one."""
        busy = deque(suite for suite in suites if suite.busy)
        waiting = deque(suite for suite in suites if not suite.busy)
        threads = [
            threading.Thread(target=self._work_off, args=queues)
            for queues in ((busy, waiting), *[(waiting,)] * _WAITING_AT_ONCE)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self._results

    def stop(self) -> None:
        """End every suite that runs, with all that it has started."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                os.killpg(process.pid, signal.SIGTERM)

    def _work_off(self, *queues: deque[Suite]) -> None:
        """Run the suites of the first queue, and then those of the next."""
        while suite := self._next(queues):
            began = time.monotonic()
            returncode = self._run(suite)
            if returncode is None:
                return
            result = Result.read(suite, returncode)
            self._results.append(result)
            counts = ", ".join(f"{number} {what}" for what, number in result.counts.items())
            ended = "" if result.green else f"  RED (exit code {returncode})"
            seconds = time.monotonic() - began
            print(f"{time.strftime('%H:%M:%S')}  {suite}: {counts} in {seconds:.0f} s{ended}", flush=True)

    def _next(self, queues: Iterable[deque[Suite]]) -> Suite | None:
        with self._lock:
            return next((suites.popleft() for suites in queues if suites), None)

    def _run(self, suite: Suite) -> int | None:
        """Run a suite in a separate process group; `None` if nothing is left to run."""
        for home in suite.homes.values():
            Path(home).mkdir(parents=True, exist_ok=True)  # Prefect makes no folder above it
        with suite.log.open("wb") as log, self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(
                suite.command,
                cwd=REPOSITORY,
                env={**os.environ, **suite.homes, **suite.variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
        returncode = process.wait()
        with self._lock:
            self._running.discard(process)
        return returncode


def summary(results: list[Result], seconds: float) -> str:
    """Sum up a run: the tests that failed, where the logs are, and a closing line with the counts."""
    counts = sum((result.counts for result in results), Counter[str]())
    lines = [""]
    for result in results:
        if not result.green:
            lines.append(f"RED: {result.suite}, see {result.suite.log.relative_to(REPOSITORY)}")
            lines += [f"  {failure}" for failure in result.failures] or ["  no test failed by itself"]
    lines.append(f"Logs: {LOGS.relative_to(REPOSITORY)}/, after {seconds / 60:.1f} min")
    failed = counts["failed"] + counts["error"]
    lines.append(f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped")
    return "\n".join(lines)


def main() -> int:
    """Run the lanes that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("lanes", nargs="+", choices=LANES)
    parser.add_argument("--skip", nargs="+", default=[], metavar="PATH", help="suites to leave out")
    arguments = parser.parse_args()
    turns = chain.from_iterable(zip_longest(*(LANES[name] for name in arguments.lanes)))
    suites = [suite for suite in turns if suite is not None and suite.path not in arguments.skip]
    LOGS.mkdir(parents=True, exist_ok=True)
    run, began = Run(), time.monotonic()

    def stop(number: int, frame: FrameType | None) -> None:
        run.stop()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    results = run.all(suites)
    red = [result for result in results if not result.green]
    if "CI" in os.environ:  # where the folder of the logs is not kept
        for result in red:
            tail = result.suite.log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
            print(f"\n==== {result.suite.log.name}", *tail, sep="\n")
    print(summary(results, time.monotonic() - began))
    return 0 if len(results) == len(suites) and not red else 1


if __name__ == "__main__":
    sys.exit(main())
