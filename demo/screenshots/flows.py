"""A job that the picture shows while it runs, one that fails, and a batch."""

from __future__ import annotations

import asyncio
from typing import Any

from prefect import flow

from noukai_prefect import NoukaiCredentials, arun_noukai_job, arun_noukai_jobs

_TITLES = ("Moby-Dick", "Middlemarch", "Ulysses", "Emma", "Dracula", "Walden", "Persuasion", "Nostromo")
_SCRIPTS: dict[str, dict[str, Any]] = {
    "Ulysses": {"outcome": "failed", "error": "CONTEXT_TOO_LONG: the text has 412,000 tokens"},
    "Walden": {"outcome": "cancelled"},
}


@flow
async def books() -> None:
    """Translate, summarise and grade books."""
    credentials = await NoukaiCredentials.aload("default")
    inputs = [
        {"message": title, "parameters": {"_emulator": _SCRIPTS[title]} if title in _SCRIPTS else None}
        for title in _TITLES
    ]
    await asyncio.gather(
        arun_noukai_job(credentials, "translate", "A long book", trace=True),
        arun_noukai_job(credentials, "summarise", "A long book", trace=True, return_state=True),
        arun_noukai_jobs(credentials, "grade", inputs, trace=True, raise_on="none"),
    )
