"""What importing the package does, as every Prefect server and worker imports it when it starts."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

from prefect.blocks.core import Block
from prefect.utilities.dispatch import get_registry_for_type

import noukai_prefect


def test_registered_collection() -> None:
    """Prefect finds the package by its entry point, and the blocks by the package."""
    (found,) = (entry for entry in entry_points(group="prefect.collections") if "noukai" in entry.name)
    assert found.load() is noukai_prefect
    registry = get_registry_for_type(Block) or {}
    ours = {block.__name__ for block in registry.values() if block.__module__.startswith("noukai_prefect")}
    assert ours == {"NoukaiCredentials", "NoukaiJob"}


def test_import_starts_nothing() -> None:
    """The import makes no request, starts no thread and no server."""
    code = (
        "import threading, sys; import noukai_prefect; "
        "sys.exit(0 if threading.active_count() == 1 and 'uvicorn' not in sys.modules else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_public_names() -> None:
    """Everything that is exported exists."""
    for name in noukai_prefect.__all__:
        assert getattr(noukai_prefect, name) is not None
