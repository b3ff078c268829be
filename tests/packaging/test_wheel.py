"""What `pip install noukai-orchestration` puts on a user's machine."""

from __future__ import annotations

import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from noukai_airflow.provider_info import get_provider_info

if TYPE_CHECKING:
    from tests.packaging.conftest import Wheel

REPOSITORY = Path(__file__).parents[2]
PACKAGES = {
    "noukai_core": REPOSITORY / "core",
    "noukai_airflow": REPOSITORY,
    "noukai_prefect": REPOSITORY,
    "noukai_orchestration": REPOSITORY,
}


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Wheel) -> None:
    """Only the packages land in site-packages: no `core`, no `tests`, no `demo`."""
    tops = {name.split("/")[0] for name in wheel.files}

    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert len(tops) == len(PACKAGES) + 1


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_complete_and_typed(wheel: Wheel, package: str) -> None:
    """Every module of the source tree is in the wheel, with the marker that makes type checkers read it."""
    root = PACKAGES[package]
    source = {
        path.relative_to(root).as_posix()
        for path in (root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert {name for name in wheel.files if name.startswith(f"{package}/")} == source
    assert f"{package}/py.typed" in source


def test_the_source_root_cannot_be_imported(wheel: Wheel) -> None:
    """With the wheel alone on the path the core imports as `noukai_core`, and `core` does not exist."""
    script = """
import importlib.util, pathlib, sys
wheel, checkout = map(pathlib.Path, sys.argv[1:])
elsewhere = [path for path in sys.path if pathlib.Path(path) not in (checkout, checkout / "core")]
sys.path[:] = [str(wheel), *elsewhere]
import noukai_core, noukai_airflow.provider_info
assert noukai_core.__file__.startswith(str(wheel)), noukai_core.__file__
assert importlib.util.find_spec("core") is None
"""
    subprocess.run(
        [sys.executable, "-c", script, wheel.path, REPOSITORY], check=True, cwd=wheel.path.parent, timeout=60
    )


def test_the_page_of_the_package_index_has_no_dead_link(wheel: Wheel, unpacked_sdist: Path) -> None:
    """The index resolves no relative link, so paths are named, which the source distribution has."""
    text = str(wheel.metadata.get_payload())
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets
    assert all(target.startswith("https://") for target in targets)
    paths = re.findall(r": `([\w./-]+)", text)
    assert "docs/airflow/quickstart.md" in paths
    assert [path for path in paths if not (unpacked_sdist / path).exists()] == []


def test_the_metadata_keep_the_ranges_wide(wheel: Wheel) -> None:
    """The core needs HTTP libraries and pydantic; each orchestrator is an extra, open from its floor up."""
    requires = {line.replace(" ", "") for line in wheel.metadata.get_all("Requires-Dist", [])}

    assert wheel.metadata["Name"] == "noukai-orchestration"
    assert wheel.metadata["Requires-Python"] == ">=3.11"
    assert requires == {
        "aiohttp<4,>=3.14.4",
        "httpx<1,>=0.27",
        "httpx-sse<1,>=0.4",
        "pydantic<3,>=2.10.1",
        "yarl<2,>=1.25.1",
        "apache-airflow>=3.1;extra=='airflow'",
        "apache-airflow-providers-common-compat>=1.23;extra=='airflow'",
        "prefect>=3.6;extra=='prefect'",
        "anyio>=4.4;extra=='prefect'",
        "fsspec>=2022.5;extra=='prefect'",
        "apache-airflow-providers-openlineage>=2.20;extra=='openlineage'",
        "opentelemetry-api<2,>=1.30;extra=='otel'",
        "starlette>=0.40;extra=='emulator'",
        "uvicorn>=0.30;extra=='emulator'",
    }
    assert set(wheel.metadata.get_all("Provides-Extra", [])) == {
        "airflow",
        "prefect",
        "openlineage",
        "emulator",
        "otel",
    }


def test_the_distribution_can_be_imported_under_its_own_name(wheel: Wheel) -> None:
    """Its module has the version, as Airflow and people look for it."""
    script = """
import sys
sys.path.insert(0, sys.argv[1])
import noukai_orchestration
print(noukai_orchestration.__version__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, wheel.path],
        capture_output=True,
        text=True,
        check=True,
        cwd=wheel.path.parent,
        timeout=60,
    )
    assert done.stdout.strip() == wheel.metadata["Version"]


def test_the_licence_comes_along(wheel: Wheel) -> None:
    """The licence is named by its SPDX expression and its text is inside."""
    assert wheel.metadata["License-Expression"] == "Apache-2.0"
    assert wheel.metadata.get_all("License-File") == ["LICENSE"]
    assert wheel.dist_info("licenses/LICENSE") == (REPOSITORY / "LICENSE").read_text("utf-8")


def test_both_orchestrators_find_their_entry_point(wheel: Wheel) -> None:
    """Airflow's provider manager and Prefect's collection loader each find their package by themselves."""
    entry_points = ConfigParser()
    entry_points.read_string(wheel.dist_info("entry_points.txt"))

    assert {group: dict(entry_points[group]) for group in entry_points.sections()} == {
        "apache_airflow_provider": {"provider_info": "noukai_airflow.provider_info:get_provider_info"},
        "airflow.plugins": {"noukai": "noukai_airflow.plugins.noukai:NoukaiPlugin"},
        "prefect.collections": {"noukai_prefect": "noukai_prefect"},
    }


def test_the_provider_goes_by_the_name_of_the_distribution(wheel: Wheel) -> None:
    """Airflow refuses to start if a provider's `package-name` differs from its distribution's name."""
    provider: dict[str, Any] = get_provider_info()

    assert provider["package-name"] == wheel.metadata["Name"]
