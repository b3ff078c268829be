"""The documentation, and the Python on it."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))

_FENCE = re.compile(
    r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
_INCLUDED = re.compile(r'^--8<-- "(?P<path>[^":]+)(?::\d*:\d*)?"$')


class Example(NamedTuple):
    """A block of Python on a page.

    Attributes:
        where: The page and the line.
        code: What the block contains.
    """

    where: str
    code: str

    @property
    def included(self) -> Path | None:
        """The file that the block shows, if it does not contain the code itself."""
        found = _INCLUDED.match(self.code.strip())
        return ROOT / found["path"] if found else None

    @property
    def package(self) -> str:
        """Which of the packages it uses."""
        if "from airflow" in self.code or "noukai_airflow" in self.code:
            return "noukai_airflow"
        return "noukai_prefect" if "prefect" in self.code else "noukai_core"


EXAMPLES = [
    Example(f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, fence.start()) + 1}", dedent(fence["code"]))
    for page in (README, *PAGES)
    if (text := page.read_text(encoding="utf-8"))
    for fence in _FENCE.finditer(text)
]


def examples(package: str) -> list[Example]:
    """Return the examples of a package that contain their code."""
    return [example for example in EXAMPLES if example.package == package and example.included is None]
