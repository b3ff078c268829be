"""The address of a job's page."""

from __future__ import annotations

from typing import Any

import pytest

from noukai_core import InvalidInputError, RunUrlTemplate

FLOW = "acme/spelling/grade-3"


def test_the_values_are_filled_in() -> None:
    """Each of the four names is replaced, wherever and however often it occurs."""
    template = RunUrlTemplate("https://noukai.test/{org}/{project}/{flow}?run={job_id}#{job_id}")
    assert template.url(FLOW, "job_1") == "https://noukai.test/acme/spelling/grade-3?run=job_1#job_1"


@pytest.mark.parametrize(
    ("job_id", "encoded"),
    [("a/b", "a%2Fb"), ("a?b#c", "a%3Fb%23c"), ("é", "%C3%A9"), ("{org}", "%7Borg%7D"), ("<a>", "%3Ca%3E")],
)
def test_a_value_cannot_leave_its_place(job_id: str, encoded: str) -> None:
    """Every value is percent-encoded, and is not itself a template."""
    assert RunUrlTemplate("http://noukai.test/{job_id}").url(FLOW, job_id) == f"http://noukai.test/{encoded}"


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("https://x/{org:>300000000}", "{org:>300000000}"),
        ("https://x/{nothing}", "{nothing}"),
        ("https://x/{job_id!r}", "{job_id!r}"),
        ("https://x/{org.__class__}", "{org.__class__}"),
        ("https://x/{}", "{}"),
        ("https://x/{job_id", "brace"),
        ("https://x/job_id}", "brace"),
        ("https://x/{{job_id}}", "brace"),
        ("https://{org}.test/{job_id}", "host"),
        ("javascript:alert('{job_id}')", "javascript"),
        ("ftp://x/{job_id}", "ftp"),
        ("//x/{job_id}", "https://"),
        ("https:///{job_id}", "https://"),
        ("https://x/ {job_id}", "https://"),
        ("https://x\n/{job_id}", "https://"),
        ("https://user:secret@x/{job_id}", "password"),
        ("https://x/" + "y" * 2000, "2010 characters"),
        ("", "https://"),
        (7, "7"),
    ],
)
def test_what_is_no_template_is_refused(template: Any, named: str) -> None:
    """The message names the argument and what is wrong with it, and shows no password."""
    with pytest.raises(InvalidInputError, match="run_url_template") as caught:
        RunUrlTemplate(template)
    assert named in str(caught.value)
    assert "secret" not in str(caught.value)
