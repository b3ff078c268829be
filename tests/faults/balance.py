"""Whether the books balance: what Noukai has, against what was submitted and what was reported."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from tests.faults import scale

ENDS = frozenset({"completed", "failed", "cancelled"})


class Report(NamedTuple):
    """What the caller of a job learned about it.

    Attributes:
        message: The input; each submission of a run has a different one.
        job_id: The job.
        state: How it ended.
    """

    message: str
    job_id: str
    state: str


def check_balance(jobs: list[dict[str, Any]], wanted: Iterable[str], reports: Iterable[Report]) -> None:
    """Check that nothing was lost, nothing was doubled, and nothing runs unwatched.

    Args:
        jobs: The jobs on the server.
        wanted: The message of each submission that was intended.
        reports: What the callers learned about the jobs.
    """
    messages, reported = list(wanted), list(reports)
    wrong = {
        "submitted under several identities": _repeated(
            message for message, _ in {(job["message"], job["idempotency_key"]) for job in jobs}
        ),
        "identities with several jobs": _repeated(job["idempotency_key"] for job in jobs),
        "submissions without exactly one job": _unequal(messages, (job["message"] for job in jobs)),
        "submissions without exactly one report": _unequal(messages, (report.message for report in reported)),
        "jobs that were not reported as they are": _unequal(
            (Report(job["message"], job["id"], job["outcome"]) for job in jobs), reported
        ),
        "jobs that no caller waits for": [job["id"] for job in jobs if job["state"] not in ENDS],
    }
    found = {what: [*names[:5], f"{len(names)} in all"] for what, names in wrong.items() if names}
    assert not found, f"FAULT_SEED={scale.SEED}: {found}"


def check_share(requests: list[dict[str, Any]], share: float, *kinds: str) -> None:
    """Check that so many of the requests met a fault, so that the run was the one that was meant."""
    concerned = [request for request in requests if not kinds or request["kind"] in kinds]
    met = sum(request["fault"] is not None for request in concerned) / len(concerned)
    assert about(met, share, len(concerned)), f"{met:.0%} of {len(concerned)} requests met a fault"


def about(met: float, share: float, number: int) -> bool:
    """Tell whether a share of so many draws is the one that was meant, as far as chance allows.

    A hundred draws of a fifth are off by two fifths of it for one seed in forty.
    """
    return met > 0 and abs(met - share) < max(0.4 * share, 5 * math.sqrt(share * (1 - share) / number))


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _unequal(first: Iterable[Any], second: Iterable[Any]) -> list[str]:
    one, other = Counter(first), Counter(second)
    return [str(name) for name in ((one - other) + (other - one))]
