"""The async client with the blocking interface, so that one test runs unchanged with both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

from noukai_core import AsyncFlow, AsyncJob


class Blocking:
    """Gives an object of the async client the interface of its blocking twin."""

    def __init__(self, runner: asyncio.Runner, target: object) -> None:
        self._runner = runner
        self._target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, {"close": "aclose"}.get(name, name))
        if not callable(value):
            return value

        def call(*args: Any, **options: Any) -> Any:
            return self._finish(value(*args, **options))

        return call

    def _finish(self, outcome: Any) -> Any:
        if inspect.isasyncgen(outcome):
            return self._iterate(outcome)
        if inspect.isawaitable(outcome):
            outcome = self._runner.run(_awaited(outcome))
        return Blocking(self._runner, outcome) if isinstance(outcome, (AsyncFlow, AsyncJob)) else outcome

    def _iterate(self, generator: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    item = self._runner.run(_awaited(anext(generator)))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self._runner.run(_awaited(generator.aclose()))

    def __repr__(self) -> str:
        return repr(self._target)

    def __str__(self) -> str:
        return str(self._target)

    def __enter__(self) -> Blocking:
        self._runner.run(self._target.__aenter__())  # type: ignore[attr-defined]
        return self

    def __exit__(self, *details: Any) -> None:
        self._runner.run(self._target.__aexit__(*details))  # type: ignore[attr-defined]


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
