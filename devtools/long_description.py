"""The README as the package index shows it. `hatchling` calls this when it builds.

The index would resolve no relative link, and the project has no public address to put before one. So pictures
are left out, and a link becomes its text and the path, which is one of the source distribution.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n+")
_LINK = re.compile(r"\[([^]]*)\]\((?!https?:)([^)]*)\)")
_NOTE = "Paths such as `docs/index.md` are those of the source distribution."


def long_description(readme: str) -> str:
    """Return a README without relative links."""
    title, first, *rest = _LINK.sub(_with_path, _PICTURE.sub("", readme)).split("\n\n")
    return "\n\n".join([title, first, _NOTE, *rest])


def _with_path(link: re.Match[str]) -> str:
    text, path = link.groups()
    return f"`{path}`" if text.strip("`/") == path else f"{text}: `{path}`"


class LongDescription(MetadataHookInterface):
    """Sets the long description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add it to what pyproject.toml says."""
        text = long_description((Path(self.root) / "README.md").read_text(encoding="utf-8"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
