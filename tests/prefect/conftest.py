"""The integration in this process: blocks, tasks called as plain functions, and runs on a Prefect server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, temporary_settings
from prefect.testing import utilities
from pydantic import SecretStr

from devtools.processes import free_port
from noukai_prefect import NoukaiCredentials

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

KEY = "nk_test_unitpref_0123456789abcdef0123456789abcdef"

os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow that Prefect leaves connections to its server to be collected, in whichever test that happens."""
    left = "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings(left))


@pytest.fixture
def credentials(emulator: Emulator) -> NoukaiCredentials:
    """Credentials of the local Noukai."""
    return NoukaiCredentials(api_key=SecretStr(KEY), base_url=emulator.base_url)


@pytest.fixture(autouse=True)
def prompt_jobs(emulator: Emulator) -> None:
    """Jobs have ended by the first look, unless a test says otherwise."""
    emulator.control.script("*", after_polls=1)


@pytest.fixture(autouse=True)
def no_run_logger() -> Iterator[None]:
    """No log is sent to a server."""
    with disable_run_logger():
        yield


@pytest.fixture(scope="session", autouse=True)
def slow_start() -> Iterator[None]:
    """A server that Prefect starts for a task outside a flow may take its time on a busy machine."""
    with temporary_settings({PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 300}):
        yield


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server with a database of its own, for the runs of this process.

    Prefect asks the system for a port and binds it seconds later; until then the system may give it away.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilities, "_find_available_port", free_port)
        with utilities.prefect_test_harness(server_startup_timeout=300):
            yield
