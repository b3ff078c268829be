"""The integration without a Prefect server: blocks, and tasks called as plain functions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from prefect.logging import disable_run_logger
from pydantic import SecretStr

from noukai_prefect import NoukaiCredentials

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

KEY = "nk_test_unitpref_0123456789abcdef0123456789abcdef"

os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"


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
    """Nothing here runs inside of a flow, so nothing is sent to a server."""
    with disable_run_logger():
        yield
