"""A flow author's module on the Prefect integration; read by type checkers, never run."""

from __future__ import annotations

from typing import assert_type

from pydantic import SecretStr

from noukai_prefect import NoukaiCredentials, NoukaiJob, NoukaiJobRun


def with_the_block(job: NoukaiJob) -> None:
    """A block's trigger gives its run."""
    assert_type(job.trigger(), NoukaiJobRun)


async def with_the_async_block(job: NoukaiJob) -> None:
    """The async twin gives the same, to be awaited."""
    assert_type(await job.atrigger(), NoukaiJobRun)


def misuse() -> None:
    """What a checker must find: an ignore that is not needed is an error here."""
    NoukaiCredentials(api_key=SecretStr("nk_key"), base_url=7)  # type: ignore[arg-type]
