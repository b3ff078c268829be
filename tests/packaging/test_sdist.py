"""The source archive: enough of the checkout to build the wheel, run the tests and watch the demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.packaging.conftest import Wheel

ADDED_BY_HATCHLING = {"PKG-INFO", "pyproject.toml", ".gitignore"}


def test_the_sdist_holds_what_its_list_names(unpacked_sdist: Path, pyproject: dict[str, Any]) -> None:
    """Every entry of the include list is in the archive, and nothing is in it that the list does not name."""
    include = {
        entry.strip("/") for entry in pyproject["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    }
    files = {path.relative_to(unpacked_sdist) for path in unpacked_sdist.rglob("*") if path.is_file()}

    strays = {
        file
        for file in files
        if not any(file.is_relative_to(entry) for entry in include | ADDED_BY_HATCHLING)
    }

    assert strays == set()
    assert {entry for entry in include if not (unpacked_sdist / entry).exists()} == set()


def test_the_sdist_carries_no_leftovers(unpacked_sdist: Path) -> None:
    """No compiled module and no cache folder is shipped."""
    assert [
        path for path in unpacked_sdist.rglob("*") if path.suffix == ".pyc" or path.name.endswith("cache__")
    ] == []


def test_a_wheel_of_the_sdist_is_the_wheel(wheel: Wheel, wheel_of_sdist: Wheel) -> None:
    """Who installs from source gets the same bytes as who installs the wheel."""
    assert wheel_of_sdist.files.keys() == wheel.files.keys()
    assert [name for name, content in wheel.files.items() if wheel_of_sdist.files[name] != content] == []
