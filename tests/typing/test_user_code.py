"""Type checkers read the packages as a user does: from outside, strictly, with no settings of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

USERS = Path(__file__).parent / "users"
INSTALLED = [name for name in ("core", "airflow", "prefect") if name == "core" or find_spec(name)]


@pytest.fixture(params=INSTALLED)
def user_code(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A user's file in a separate folder, for each orchestrator that is installed."""
    return Path(shutil.copy(USERS / f"{request.param}_user.py", tmp_path))


@pytest.fixture(scope="session")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy has read for one file, the next one need not read again."""
    return tmp_path_factory.mktemp("mypy")


def test_mypy_agrees(user_code: Path, mypy_cache: Path) -> None:
    """Under `mypy --strict` each expression has the type that the file states, and each misuse is found."""
    check(
        ["mypy", "--strict", "--config-file=", f"--cache-dir={mypy_cache}", user_code.name], user_code.parent
    )


def test_pyright_agrees(user_code: Path) -> None:
    """Under strict pyright each expression has the type that the file states, and each misuse is found."""
    settings = {"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error"}
    (user_code.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    check(["pyright", "--pythonpath", sys.executable, user_code.name], user_code.parent)


def check(command: list[str], folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
