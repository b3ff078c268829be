"""Steps in the log of a task that waits on its worker: a thread follows them beside the blocking wait."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from noukai_airflow._client_cache import new_async_client
from noukai_core.following import LAST_STEPS_SECONDS, StepCount, log_steps

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core import Job

log = logging.getLogger(__name__)

_STOP_SECONDS = LAST_STEPS_SECONDS + 5.0
"""How long a task waits for the thread to end. It does nothing that another task would miss."""


@contextmanager
def steps_beside(settings: ConnectionSettings, job: Job, count: StepCount) -> Generator[None, None, None]:
    """Log each step of a job while the block waits for its end.

    Args:
        settings: The connection.
        job: The job.
        count: How many steps were logged before; it is kept up to date.
    """
    follower = _Follower(settings, job, count)
    context = contextvars.copy_context()  # with Airflow's, which says whose log a line belongs to
    thread = threading.Thread(target=context.run, args=(follower.run,), name="noukai-steps", daemon=True)
    thread.start()
    try:
        yield
        follower.finish()
    except BaseException:
        follower.stop()
        raise
    finally:
        thread.join(_STOP_SECONDS)


class _Follower:
    """Follows a job on an event loop in its thread: its streams can be left at any moment."""

    def __init__(self, settings: ConnectionSettings, job: Job, count: StepCount) -> None:
        self._settings = settings
        self._job = job
        self._count = count
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._finished = asyncio.Event()
        self._stopped = False

    def run(self) -> None:
        try:
            asyncio.run(self._run())
        except Exception as error:  # the job is what matters
            log.warning("Noukai job %s of %s: steps not followed (%r)", self._job.id, self._job.flow, error)

    def finish(self) -> None:
        """Let the last steps arrive, and end."""
        self._call(self._finished.set)

    def stop(self) -> None:
        """End at once."""
        self._call(lambda: self._task and self._task.cancel())

    def _call(self, action: Callable[[], object]) -> None:
        with self._lock:
            self._stopped = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(action)

    async def _run(self) -> None:
        self._task = asyncio.create_task(self._follow())
        with self._lock:
            if self._stopped:
                self._task.cancel()
            else:
                self._loop = asyncio.get_running_loop()
        await asyncio.wait({self._task})
        with self._lock:
            self._loop = None
        if not self._task.cancelled():
            self._task.result()

    async def _follow(self) -> None:
        async with await new_async_client(self._settings) as client:
            job = client.flow(self._job.flow).attach(self._job.id, submitted_at=self._job.submitted_at)
            async with log_steps(job, log, self._count):
                await self._finished.wait()
