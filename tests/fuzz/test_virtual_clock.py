"""The virtual clock turns for nobody else."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue

from tests.fuzz.virtual_clock import turned_time


def test_other_threads_keep_the_real_time() -> None:
    """A thread that is there before sees the real time, and one that is started meanwhile the virtual one."""
    questions, answers = SimpleQueue[None](), SimpleQueue[float]()

    def answer() -> None:
        questions.get()
        answers.put(time.monotonic())

    threading.Thread(target=answer, daemon=True).start()
    with turned_time() as clock:
        clock.sleep(1e9)
        questions.put(None)
        seen = answers.get()
        threading.Thread(target=answer, daemon=True).start()
        questions.put(None)
        assert answers.get() == time.monotonic() == clock.now
    assert seen <= time.monotonic()
