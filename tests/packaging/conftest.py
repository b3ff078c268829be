"""The distribution as a user gets it, built once: sdist, wheel of the checkout, wheel of the sdist."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Wheel:
    path: Path
    files: dict[str, bytes]

    @property
    def metadata(self) -> Message:
        return HeaderParser().parsestr(self.dist_info("METADATA"))

    def dist_info(self, name: str) -> str:
        [content] = [data for path, data in self.files.items() if path.endswith(f".dist-info/{name}")]
        return content.decode()


@pytest.fixture(scope="session")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", REPOSITORY, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def unpacked_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # new in Python 3.11.4
        archive.extractall(folder)
    [root] = folder.iterdir()
    return root


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return read(build("wheel", REPOSITORY, tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="session")
def wheel_of_sdist(unpacked_sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return read(build("wheel", unpacked_sdist, tmp_path_factory.mktemp("wheel_of_sdist")))


def build(what: str, source: Path, folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", f"--{what}", "--outdir", folder, source],
        check=True,
        stdout=subprocess.PIPE,
    )
    [built] = folder.iterdir()
    return built


def read(path: Path) -> Wheel:
    with ZipFile(path) as archive:
        return Wheel(path, {name: archive.read(name) for name in archive.namelist()})
