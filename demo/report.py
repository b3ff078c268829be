"""What the demo shows: each change of a job as it happens, and the table at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from noukai_core import Noukai, one_line
from noukai_core.emulator import EmulatorControl

_PAUSE = 0.2


@dataclass(frozen=True)
class Ending:
    """What became of the task that ran one job."""

    orchestrator: str
    task: str
    state: str
    error: str | None


def say(text: str) -> None:
    """Show one line of the story, with the seconds since the demo began."""
    print(f"{time.monotonic() - _BEGAN:6.1f} s  {text}\n", end="", flush=True)


_BEGAN = time.monotonic()


class LiveView:
    """Shows each change of state of every job while the block runs."""

    def __init__(self, control: EmulatorControl) -> None:
        self._control = control
        self._seen: dict[str, list[str]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="live-view", daemon=True)

    def __enter__(self) -> LiveView:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(_PAUSE):
            self._show_changes()
        self._show_changes()

    def _show_changes(self) -> None:
        for job in self._control.jobs():
            seen = self._seen.setdefault(job["id"], [])
            for state in job["states"][len(seen) :]:
                change = f"{seen[-1]} → {state}" if seen else f"submitted, {state}"
                message, slug = one_line(job["message"].removeprefix("from ")), one_line(job["slug"])
                say(f"{message:8} {slug:12}  {job['id']}  {change}")
                seen.append(state)


def table(endings: Sequence[Ending], control: EmulatorControl, client: Noukai) -> str:
    """Return the table of what became of every job."""
    jobs = {(job["message"].removeprefix("from "), job["slug"]): job for job in control.jobs()}
    rows = [("orchestrator", "job", "states seen", "requests", "task", "task state", "output or error")]
    for ending in endings:
        job = jobs[ending.orchestrator, ending.task]
        finished = client.flow(job["flow"]).attach(job["id"])
        said = finished.wait().output if ending.error is None else ending.error
        rows.append(
            (
                ending.orchestrator,
                job["id"],
                " → ".join(job["states"]),
                _requests(control.counts(job["id"])),
                ending.task,
                ending.state,
                short(said),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _requests(counts: dict[str, int]) -> str:
    named = {"submit": "submit", "poll": "polls", "cancel": "cancel"}
    return ", ".join(f"{counts[kind]} {name}" for kind, name in named.items() if counts.get(kind))


def short(value: Any, length: int = 80) -> str:
    """Show a value on one line, cut."""
    return one_line(str(value), length)
