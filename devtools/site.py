"""A hook of mkdocs, which adds pages that are not in `docs/`.

The documents of the repository's root are pages too, with links that fit there, and the picture of the
architecture is drawn from the imports.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from devtools import architecture

ROOT = Path(__file__).parents[1]
PAGES = {
    "CHANGELOG.md": "development/changelog.md",
    "CONTRIBUTING.md": "development/contributing.md",
    "SECURITY.md": "development/security-policy.md",
}

_LINK = re.compile(r"\[([^\]]+)\]\(((?!https?://|#)[^)\s]+)\)")


def on_files(files: Files, *, config: MkDocsConfig, **_: Any) -> Files:
    """Add the documents of the root, and the picture."""
    for document, page in PAGES.items():
        text = (ROOT / document).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_LINK.sub(_link_of_the_site, text)))
    files.append(File.generated(config, "images/architecture.svg", content=architecture.draw()))
    return files


def _link_of_the_site(link: re.Match[str]) -> str:
    """Point a link to the page of the site; a file that is no page is only named."""
    text, target = link.groups()
    path, _, anchor = target.partition("#")
    if path.startswith("docs/"):
        path = path.removeprefix("docs/")
    elif path in PAGES:
        path = PAGES[path]
    else:
        return text
    return f"[{text}](../{path}{'#' * bool(anchor)}{anchor})"
