"""The documentation is short, whole, and holds what it says about the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from devtools import architecture
from tests.documents import EXAMPLES, PAGES, README, ROOT, Example

LINK = re.compile(r"\]\(((?!https?://|#)[^)#\s]+)")


def test_a_formatter_leaves_what_is_included() -> None:
    """The pages of examples include their files; a formatter that rewrote the marks would show the marks."""
    shown = {example.included for example in EXAMPLES if example.included is not None}
    files = {*(ROOT / "example_dags").glob("*.py"), *(ROOT / "example_flows").glob("*.py")}
    assert files <= shown


def test_the_readme_is_short() -> None:
    """The README is read in one go."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 110


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_short(page: Path) -> None:
    """A page answers one question."""
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_the_root(name: str) -> None:
    """What a document of the root links to exists; mkdocs checks the links of the pages."""
    targets = LINK.findall((ROOT / name).read_text(encoding="utf-8"))
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.where)
def test_an_example_is_python(example: Example) -> None:
    """Every Python example compiles, and what a page includes is an example that a test runs.

    What is reported to other projects is not: it needs their packages, and changes when they do.
    """
    compile(example.code if example.included is None else "", example.where, "exec")
    if example.included is not None:
        assert example.included.is_file()
        assert example.included.parent.name in ("example_dags", "example_flows", "upstream")


def test_the_picture_shows_every_import() -> None:
    """The picture has a box for every layer and an arrow for every import that follows from no other."""
    picture = architecture.draw()
    edges, layers = architecture.imports(), architecture.layers()
    assert all(f">{layer}</text>" in picture for layer in layers)
    between = {edge for edge in architecture.without_implied(edges) if set(edge) <= set(layers)}
    assert picture.count("marker-end") == len(between) + len(architecture.PACKAGES)
    assert {edge for edge in edges if set(edge) <= set(layers)} <= closure(between)


def closure(edges: set[architecture.Edge]) -> set[architecture.Edge]:
    """Add the edges that paths imply."""
    longer = edges | {(start, end) for start, via in edges for again, end in edges if via == again}
    return edges if longer == edges else closure(longer)


def test_the_picture_cannot_hide_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of the emulator, which the picture shows without any, is an error."""
    monkeypatch.setattr(architecture, "imports", lambda: {("_engine", architecture.EMULATOR)})
    with pytest.raises(ValueError, match="_engine"):
        architecture.draw()
