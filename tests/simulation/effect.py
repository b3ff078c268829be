"""How a coroutine of a simulated process asks for something."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any


class Effect:
    """Something that a coroutine waits for; the task that runs it performs it."""

    __slots__ = ("what",)

    def __init__(self, what: Any) -> None:
        self.what = what

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self.what)
