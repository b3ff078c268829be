"""The address of a job's page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from noukai_core._validation import has_space, refused, shown, split_url

_FIELDS = ("org", "project", "flow", "job_id")
_FIELD = re.compile(r"\{([^{}]*)\}")
_LONGEST = 2000
_ALLOWED = "an address that begins with https:// or http://"


@dataclass(frozen=True)
class RunUrlTemplate:
    """Makes the address of a job's page from a template.

    Args:
        template: An http or https address with `{org}`, `{project}`, `{flow}` and `{job_id}` in it. The
            values are percent-encoded. The host may not depend on the job.

    Raises:
        InvalidInputError: The template is not such an address, is longer than 2000 characters, or has
            something else in braces.

    Example:
        >>> from noukai_core import RunUrlTemplate
        >>> template = RunUrlTemplate("https://noukai.test/{project}/runs/{job_id}")
        >>> template.url("acme/spelling/grade-3", "job_1")
        'https://noukai.test/spelling/runs/job_1'
    """

    template: str

    def __post_init__(self) -> None:
        given = self.template
        if not isinstance(given, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise refused(f"run_url_template is {shown(given)}, but must be {_ALLOWED}")
        if len(given) > _LONGEST:
            raise refused(f"run_url_template has {len(given)} characters, but must have {_LONGEST} or fewer")
        parts = split_url(given, "run_url_template", _ALLOWED)
        if parts.scheme not in ("http", "https") or not parts.hostname or has_space(given):
            raise refused(f"run_url_template is {shown(given)}, but must be {_ALLOWED}")
        names = ", ".join(f"{{{name}}}" for name in _FIELDS)
        for name in _FIELD.findall(given):
            if name not in _FIELDS:
                raise refused(f"run_url_template has {shown('{' + name + '}')}, but may only have {names}")
        if set(_FIELD.sub("", given)) & set("{}"):
            raise refused(f"run_url_template has a brace without its partner; it may only have {names}")
        if "{" in parts.netloc:
            raise refused("run_url_template has braces in its host, which must be the same for all jobs")

    def url(self, flow: str, job_id: str) -> str:
        """Return the address of a job's page.

        Args:
            flow: The job's flow, as `org/project/slug`.
            job_id: The job.
        """
        values: dict[str, str] = dict(zip(_FIELDS, (*flow.split("/"), job_id), strict=True))
        return _FIELD.sub(lambda field: quote(values[field[1]], safe=""), self.template)
