"""Which job an id names: a server may write one id in several ways."""

from __future__ import annotations

import re

_UUID_AT_END = re.compile(r"[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}\Z")


def canonical_job_id(job_id: str) -> str:
    """Return what is the same for all ids that name one job.

    Case makes no difference, nor do the dashes of a UUID. Other dashes do: `job-1-1` is not `job-11`.
    """
    folded = job_id.casefold()
    number = _UUID_AT_END.search(folded)
    if number is None:
        return folded
    return folded[: number.start()] + number.group().replace("-", "")
