"""A clock that a test turns by hand, for decisions over minutes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from noukai_core._api.endpoints import Call, outcome
from noukai_core._api.parsing import HttpResponse
from noukai_core._engine.effects import Receive, Send, Sleep, T
from noukai_core.errors import APIError
from tests.core.scripted_server import KEY


class Turned:
    """A clock, and a server whose responses depend on it."""

    def __init__(self, response: Callable[[Call[Any], float], HttpResponse | APIError]) -> None:
        self.now = 0.0
        self.sent: list[str] = []
        self._response_at = response

    def __call__(self) -> float:
        return self.now

    def run(self, effects: Generator[Any, Any, T]) -> T:
        response: Any = None
        while True:
            try:
                step = effects.send(response)
            except StopIteration as end:
                decided: T = end.value
                return decided
            response = None
            if isinstance(step, Sleep):
                self.now += step.seconds
            elif isinstance(step, Send | Receive):
                self.sent.append(step.call.method)
                response = outcome(step.call, self._response_at(step.call, self.now), KEY)
