"""Processes that live at the same time: each runs until it waits, then time passes until one can go on.

The code of a process blocks, or runs an event loop of its own. So each has a stack of its own, in a greenlet.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

from greenlet import getcurrent, greenlet

from tests.simulation.clock import Clock


class LiveProcess:
    """What distinguishes a process from the others that live at the same time.

    Args:
        number: Which of the schedule's processes it is.
        clock: The time.
        wall_error: By how many seconds its wall clock is wrong.

    Attributes:
        began_at: When it began.
        boot: What its monotonic clock shows more than the time.
        frozen_until: Until when it stands still, as the process of a paused machine does.
        presumed_dead_at: When its orchestrator began to take it for dead, although it lives.
    """

    def __init__(self, number: int, clock: Clock, wall_error: float = 0.0) -> None:
        self.number = number
        self.clock = clock
        self.wall_error = wall_error
        self.began_at = clock.now
        self.boot = number * 10_000.0
        self.frozen_until = -math.inf
        self.presumed_dead_at: float | None = None

    def enter(self) -> None:
        """Let its clocks be those that are read."""
        self.clock.boot = self.boot
        self.clock.wall_error = self.wall_error

    def freeze(self, seconds: float) -> None:
        """Let it stand still for some seconds."""
        self.frozen_until = self.clock.now + seconds
        self.clock.at(self.frozen_until, lambda: None)


@dataclass(eq=False)
class _Waiting:
    stack: greenlet
    process: LiveProcess
    ready: Callable[[], bool]
    until: float

    @property
    def ends_at(self) -> float:
        return max(self.until, self.process.frozen_until)

    @property
    def can_go_on(self) -> bool:
        return self.process.frozen_until <= self.process.clock.now and self.ready()


class Interleaving:
    """Lets the processes of one schedule run, one at a time.

    Args:
        clock: The time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._outside = getcurrent()
        self._waiting: list[_Waiting] = []
        self._running: LiveProcess | None = None

    @property
    def running(self) -> LiveProcess:
        """The process whose code runs now."""
        assert self._running is not None, "no process runs"
        return self._running

    def start(self, process: LiveProcess, function: Callable[[], None]) -> None:
        """Run the code of a process until it waits for the first time."""
        stack = greenlet(function, parent=self._outside)
        stack.gr_context = contextvars.copy_context()
        self._switch_to(stack, process)

    def wait(self, ready: Callable[[], bool], until: float) -> None:
        """Let the others run, and time pass, until the running process can go on."""
        loop, hooks = asyncio._get_running_loop(), sys.get_asyncgen_hooks()
        asyncio._set_running_loop(None)
        sys.set_asyncgen_hooks(None, None)  # or a loop that begins meanwhile would restore these at its end
        self._waiting.append(_Waiting(getcurrent(), self.running, ready, until))
        self._outside.switch()
        asyncio._set_running_loop(loop)
        sys.set_asyncgen_hooks(*hooks)

    def run(self, until: float) -> None:
        """Let time pass until nothing happens any more, or until a moment."""
        clock = self._clock
        while clock.now <= until:
            chosen = next((one for one in self._waiting if one.can_go_on), None)
            if chosen is None:
                chosen = min(self._waiting, key=lambda one: one.ends_at, default=None)
                ends_at = math.inf if chosen is None else chosen.ends_at
                next_at = clock.next_at()
                if next_at is not None and next_at <= ends_at:
                    clock.step()
                    continue
                if chosen is None:
                    return
                assert ends_at < math.inf, "a process waits for what never comes"
                clock.now = max(ends_at, clock.now)
            self._waiting.remove(chosen)
            self._switch_to(chosen.stack, chosen.process)

    def _switch_to(self, stack: greenlet, process: LiveProcess) -> None:
        assert getcurrent() is self._outside, "processes begin and go on by an event, not by another one"
        self._running = process
        process.enter()
        stack.switch()
        self._running = None
