"""Fixtures for every suite: a local Noukai over real HTTP, and an environment without anybody's settings."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Tests may interrupt themselves, even if a shell runs them in the background, with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_ambient_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's key or base URL never reaches a test."""
    for name in ("NOUKAI_API_KEY", "NOUKAI_BASE_URL", "NOUKAI_ENV"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def emulator_server() -> Iterator[Emulator]:
    """One emulator for the whole run; tests take `emulator`, which is the same one, emptied."""
    from noukai_core.emulator import Emulator

    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(emulator_server: Emulator) -> Iterator[Emulator]:
    """A local Noukai with no job, no script, no fault and an empty request log."""
    emulator_server.control.reset()
    yield emulator_server
    emulator_server.control.reset()
