"""The import contracts in `pyproject.toml` hold, and each of them can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("core/noukai_core", "noukai_airflow", "noukai_prefect")

VIOLATIONS = [
    ("noukai_airflow/provider_info.py", "import noukai_prefect.tasks", "do not know each other"),
    ("core/noukai_core/models.py", "import noukai_prefect", "do not know each other"),
    ("noukai_prefect/tasks.py", "from noukai_core._api import endpoints", "the core's public names"),
    ("noukai_prefect/tasks.py", "from noukai_core.emulator import Emulator", "the core's public names"),
    (
        "core/noukai_core/_api/endpoints.py",
        "import noukai_core._http.connection",
        "from drivers to decisions",
    ),
    ("core/noukai_core/_validation.py", "import noukai_core.models", "from drivers to decisions"),
    ("core/noukai_core/client.py", "import noukai_core.emulator", "Nothing rests on the emulator"),
    ("core/noukai_core/emulator/_jobs.py", "import noukai_core.client", "does not rest on what it is there"),
    ("noukai_airflow/triggers/noukai.py", "import httpx", "HTTP libraries stay behind _http"),
    ("core/noukai_core/_engine/wait.py", "import aiohttp", "HTTP libraries stay behind _http"),
    ("core/noukai_core/models.py", "import airflow", "The core knows no orchestrator"),
]


def contracts(root: Path) -> subprocess.CompletedProcess[str]:
    """Runs import-linter over the packages below a folder."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root / 'core'}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the packages and their contracts."""
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, tmp_path / package)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold() -> None:
    """No module of the three packages imports what it may not."""
    result = contracts(REPOSITORY)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(("module", "statement", "contract"), VIOLATIONS)
def test_a_violation_is_found(copy: Path, module: str, statement: str, contract: str) -> None:
    """One import against a contract breaks that contract, by name."""
    path = copy / module
    path.write_text(f"{path.read_text()}\n{statement}\n")
    result = contracts(copy)
    broken = [line for line in result.stdout.splitlines() if line.endswith("BROKEN")]
    assert result.returncode != 0
    assert any(contract in line for line in broken), result.stdout + result.stderr
