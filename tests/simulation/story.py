"""What happened in a schedule, told line by line."""

from __future__ import annotations

from tests.simulation.clock import Clock


class Story:
    """Collects lines when somebody wants to read them, and nothing otherwise."""

    def __init__(self, clock: Clock, *, told: bool) -> None:
        self._clock = clock
        self._told = told
        self._began = clock.now
        self.lines: list[str] = []

    def tell(self, line: str, *about: object) -> None:
        """Add a line, with the time before it."""
        if self._told:
            self.lines.append(f"{self._clock.now - self._began:9.2f} s  {line.format(*about)}")
