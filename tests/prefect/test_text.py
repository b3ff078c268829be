"""Text from flows and servers, in places where people read it."""

from __future__ import annotations

from decimal import Decimal

import pytest

from noukai_core import JobStatus, TraceStep
from noukai_prefect._job_artifact import JobCost, job_markdown
from noukai_prefect._text import dollars, markdown, markdown_link


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "plain words, 40 % of MODEL_OVERLOADED: 1.5 (a-b)",
            "plain words, 40 % of MODEL_OVERLOADED: 1.5 (a-b)",
        ),
        ("[click](https://evil.test)", r"\[click\](https://evil.test)"),
        ("![x](https://evil.test/pixel)", r"!\[x\](https://evil.test/pixel)"),
        ("<img src=x onerror=alert(1)>", r"\<img src=x onerror=alert(1)\>"),
        ("&lt;script&gt;", r"\&lt;script\&gt;"),
        ("`code` *a* _b_ ~c~ | d", r"\`code\` \*a\* \_b\_ \~c\~ \| d"),
        ("# heading", r"\# heading"),
        ("1. item", r"1\. item"),
        ("back\\slash", r"back\\slash"),
        ("two\nlines\r\x1b[31mred\x1b]8;;x\x07", "two lines red"),
        ("\u202eabc\u200bdef", "abc def"),
    ],
)
def test_markdown(text: str, shown: str) -> None:
    """Markdown, HTML and control characters are shown as text, and words stay as they are."""
    assert markdown(text) == shown


def test_link() -> None:
    """The text of a link is escaped; without an address there is only the text."""
    assert markdown_link("job_1]", "https://noukai.test/job_1") == r"[job_1\]](https://noukai.test/job_1)"
    assert markdown_link("job_1", None) == "job_1"


@pytest.mark.parametrize(
    ("amount", "shown"),
    [("0.41", "$0.41"), ("0.4149", "$0.41"), ("12", "$12.00"), ("0", "$0.00"), ("0.0012", "$0.0012")],
)
def test_dollars(amount: str, shown: str) -> None:
    """Small amounts keep their digits."""
    assert dollars(Decimal(amount)) == shown


def test_job_markdown() -> None:
    """The artifact of a job names state and reason first, links the job, and omits what is unknown."""
    status = JobStatus(id="job_1", state="failed", error="<b>no</b>", started_at="2026-01-01T00:00:00Z")
    text = job_markdown(
        "acme/spelling/grade-3",
        "job_1",
        page="https://noukai.test/job_1",
        state="failed",
        reason=status.error,
        version=7,
        status=status,
        seconds=6.04,
        cost=JobCost(1234, Decimal("0.41"), TraceStep(id="check", model="m-1", attempt=3)),
    )
    assert text.splitlines() == [
        "Noukai job [job_1](https://noukai.test/job_1) of acme/spelling/grade-3: **failed**",
        "",
        "| | |",
        "| --- | --- |",
        r"| Reason | \<b\>no\</b\> |",
        "| Failed step | check (m-1, attempt 3) |",
        "| Version | 7 |",
        "| Started | 2026-01-01T00:00:00Z |",
        "| Duration | 6.0 s |",
        "| Tokens | 1,234 |",
        "| Cost | $0.41 |",
    ]
    assert job_markdown("acme/x/y", "job_1", page=None, state="pending").count("|") == 0
