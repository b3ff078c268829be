"""The pinned requirement files: what CI and `make` install, from whichever index the machine uses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

FOLDER = Path(__file__).parents[2] / "requirements"
PINNED = sorted(path.name for path in FOLDER.glob("*.txt"))
ENVIRONMENTS = [
    "airflow-deployment.txt",
    "airflow-floor.txt",
    "airflow-next.txt",
    "airflow-peers.txt",
    "airflow.txt",
    "prefect-floor.txt",
    "prefect-peers.txt",
    "prefect.txt",
]
TOOLS = ["coverage.txt", "docs.txt", "screenshots.txt"]
FLOORS = {"airflow-floor": "apache-airflow==3.1.8", "prefect-floor": "prefect==3.6.29"}


def lines(name: str) -> list[str]:
    """Return the lines of a file, each with the hashes that follow it."""
    return (FOLDER / name).read_text("utf-8").replace(" \\\n    ", " ").splitlines()


def pins(name: str) -> list[Requirement]:
    return [Requirement(line.partition(" --hash=")[0]) for line in lines(name)]


def test_there_is_a_file_for_each_environment() -> None:
    """The newest and oldest version of each orchestrator have their pins; so have peers and other tools."""
    assert sorted([*ENVIRONMENTS, *TOOLS]) == PINNED


@pytest.mark.parametrize("name", PINNED)
def test_a_line_is_a_pin_and_nothing_else(name: str) -> None:
    """No file names an index, a URL or a path: each line is one exact version with its hashes."""
    pin = re.compile(r"[a-z0-9-]+==[0-9a-z.+]+( ; [^/@]+?)?( --hash=sha256:[0-9a-f]{64})+")
    odd = [line for line in lines(name) if not pin.fullmatch(line)]

    assert odd == []


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_pins_are_inside_the_ranges(name: str, pyproject: dict[str, Any]) -> None:
    """Every requirement of pyproject is pinned, at a version that pyproject allows."""
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    asked = [
        *project["dependencies"],
        *extras[name.split("-")[0].removesuffix(".txt")],
        *extras["emulator"],
        *pyproject["dependency-groups"]["test"],
    ]
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins(name)}

    outside = [
        line
        for line in asked
        if not (each := Requirement(line)).specifier.contains(pinned.get(canonicalize_name(each.name), "0"))
    ]

    assert outside == []


@pytest.mark.parametrize("name", FLOORS)
def test_the_floors_are_the_oldest_that_install(name: str) -> None:
    """The floor environments hold the last patch of the oldest supported minor version, to the digit."""
    assert FLOORS[name] in (FOLDER / f"{name}.in").read_text("utf-8").splitlines()
    assert FLOORS[name] in [str(pin) for pin in pins(f"{name}.txt")]


def test_the_oldest_libraries_of_the_client_are_tried(pyproject: dict[str, Any]) -> None:
    """With the oldest Prefect, the client's dependencies are as old as their ranges allow."""
    oldest = {
        each.name: Version(bound.version)
        for each in map(Requirement, pyproject["project"]["dependencies"])
        for bound in each.specifier
        if bound.operator == ">="
    }
    pinned = {pin.name: Version(str(pin.specifier).removeprefix("==")) for pin in pins("prefect-floor.txt")}

    assert oldest.keys() == {"aiohttp", "httpx", "httpx-sse", "pydantic", "yarl"}
    assert {name: pinned[name] for name in oldest} == oldest
