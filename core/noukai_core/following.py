"""Log the steps of a job while something waits for its end. Trouble with the stream costs one line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from noukai_core.errors import NoukaiError

if TYPE_CHECKING:
    from noukai_core.async_client import AsyncJob
    from noukai_core.cancellation import Logger

Follow: TypeAlias = Literal["state", "steps"] | None
"""What of a job is logged while it runs: its state and progress, its steps as well, or nothing."""

FOLLOW: tuple[Follow, ...] = ("state", "steps", None)

LAST_STEPS_SECONDS = 0.5
"""Seconds that the last steps of a job have to arrive after a poll has shown its end."""


@dataclass(slots=True)
class StepCount:
    """How many steps of a job were logged, so that none is logged again over another client."""

    logged: int = 0


@asynccontextmanager
async def log_steps(job: AsyncJob, logger: Logger, count: StepCount) -> AsyncGenerator[None, None]:
    """Log each step of a job while the block waits for its end.

    Args:
        job: The job.
        logger: Where to log.
        count: How many steps were logged before; it is kept up to date.
    """
    following = asyncio.create_task(_log_steps(job, logger, count))
    try:
        yield
        await asyncio.wait({following}, timeout=LAST_STEPS_SECONDS)
    finally:
        following.cancel()
        await asyncio.wait({following})


async def _log_steps(job: AsyncJob, logger: Logger, count: StepCount) -> None:
    steps = job.steps(skip=count.logged)
    try:
        async for step in steps:
            count.logged += 1
            logger.info("Noukai job %s of %s: step %s", job.id, job.flow, step.text)
    except NoukaiError as error:
        logger.info("Noukai job %s of %s: steps not followed (%s)", job.id, job.flow, error)
    except Exception as error:  # the job is what matters
        logger.warning("Noukai job %s of %s: steps not followed (%r)", job.id, job.flow, error)
    finally:
        await steps.aclose()
