"""The packages import each other in one direction only, and the check that says so can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture.arrows import violations

REPOSITORY = Path(__file__).parents[2]

FOR_TYPES_ONLY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "

ALLOWED = {
    "core/noukai_core/__init__.py": "__all__ = ['Job', 'JobState']; from .client import Job",
    "core/noukai_core/errors.py": FOR_TYPES_ONLY + "from .models import JobStatus",
    "core/noukai_core/models.py": "import pydantic; from .errors import JobFailed",
    "core/noukai_core/calls.py": "from . import models",
    "core/noukai_core/http.py": "import httpx; from .calls import Call",
    "core/noukai_core/client.py": "from .http import Wire; from noukai_core.policy import pause",
    "core/noukai_core/emulator/__init__.py": "from .server import Emulator",
    "core/noukai_core/emulator/server.py": "import httpx, uvicorn; from ..models import JobState",
    "noukai_airflow/hook.py": "import json; from airflow.sdk import BaseHook; from noukai_core import Job",
    "noukai_airflow/operators.py": "from .hook import NoukaiHook; from noukai_core.errors import Refused",
    "noukai_prefect/tasks.py": "import noukai_core; from prefect import task; from noukai_core import Job",
}

FORBIDDEN = [
    ("noukai_airflow/hook.py", "from noukai_prefect import tasks"),
    ("noukai_airflow/hook.py", "from noukai_core.emulator import Emulator"),
    ("noukai_airflow/hook.py", "import httpx"),
    ("noukai_prefect/block.py", "import noukai_airflow"),
    ("noukai_prefect/block.py", FOR_TYPES_ONLY + "from noukai_airflow import hook"),
    ("noukai_prefect/block.py", "from noukai_core.calls import submit"),
    ("noukai_prefect/block.py", "import noukai_core.policy"),
    ("noukai_prefect/block.py", "from noukai_core import _private"),
    ("noukai_prefect/block.py", "from noukai_core.errors import _rebuild"),
    ("core/noukai_core/client.py", "from noukai_airflow.hook import NoukaiHook"),
    ("core/noukai_core/client.py", "from .emulator import Emulator"),
    ("core/noukai_core/client.py", "from .aio import AsyncNoukai"),
    ("core/noukai_core/client.py", "from . import Job"),
    ("core/noukai_core/errors.py", "from .models import JobStatus"),
    ("core/noukai_core/calls.py", "def late():\n    from .http import Wire"),
    ("core/noukai_core/calls.py", "import httpx"),
    ("core/noukai_core/http.py", "import aiohttp"),
    ("core/noukai_core/models.py", "import attrs"),
    ("core/noukai_core/http.py", "import starlette"),
    ("core/noukai_core/emulator/server.py", "from ..client import Noukai"),
    ("core/noukai_core/emulator/server.py", "from noukai_core import Noukai"),
    ("core/noukai_core/odds_and_ends.py", ""),
]


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


def test_the_packages_keep_to_the_arrows() -> None:
    """No module of the three packages imports what it may not know."""
    assert violations(REPOSITORY) == []


def test_a_house_in_order_passes(tmp_path: Path) -> None:
    """The check lets everything through that the arrows allow."""
    assert violations(lay_out(tmp_path, ALLOWED)) == []


@pytest.mark.parametrize(("module", "source"), FORBIDDEN)
def test_one_forbidden_import_is_found(tmp_path: Path, module: str, source: str) -> None:
    """A single import against the arrows is reported, with the module that makes it."""
    [found] = violations(lay_out(tmp_path, ALLOWED | {module: source}))

    assert Path(module).stem in found
