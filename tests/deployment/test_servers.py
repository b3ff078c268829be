"""The servers of a run: nothing of them outlives it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from devtools.processes import wait_until

ROOT = Path(__file__).parents[2]

RUN = """
import sys
from pathlib import Path
from tests.deployment.servers import PostgreSQL, Redis

folder = Path(sys.argv[1])
with PostgreSQL(folder) as postgresql, Redis(folder) as redis:
    print(postgresql.pid, redis.pid, postgresql.home, flush=True)
    sys.stdin.read()
"""


def test_a_run_is_killed(tmp_path: Path) -> None:
    """When a run is killed, its servers end, and what they have kept is removed."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        *pids, home = run.stdout.readline().split()
        assert all(psutil.pid_exists(int(pid)) for pid in pids)
        assert Path(home).exists()
        run.kill()
        wait_until(
            lambda: not any(psutil.pid_exists(int(pid)) for pid in pids) and not Path(home).exists(),
            "the end of the servers",
        )
