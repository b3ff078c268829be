"""The documented examples of the job client and of the emulator run as they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from noukai_core import errors, telemetry
from noukai_core.emulator import _faults, _script
from tests.documents import ROOT, Example, examples

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator


@pytest.mark.parametrize("example", examples("noukai_core"), ids=lambda example: example.where)
def test_an_example_of_the_client_runs(
    example: Example, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example runs against a local Noukai."""
    monkeypatch.setattr(telemetry, "_receivers", [])  # an example adds one, which would stay
    emulator.control.script("*", after_seconds=0.2)  # nobody polls a job whose steps are followed
    monkeypatch.setenv("NOUKAI_API_KEY", "nk_test_documents")
    monkeypatch.setenv("NOUKAI_BASE_URL", emulator.base_url)
    exec(compile(example.code, example.where, "exec"), {"__name__": "__main__"})


def test_every_error_is_explained() -> None:
    """The page on troubleshooting says of each error of the client what to do."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    names = [
        name for name, value in vars(errors).items() if isinstance(value, type) and name.endswith("Error")
    ]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_scripts_and_faults_are_documented() -> None:
    """The emulator's pages list every field of a script, and every kind of fault with its options."""
    scripts, faults = (
        (ROOT / "docs" / "emulator" / name).read_text(encoding="utf-8")
        for name in ("scripts.md", "faults.md")
    )
    assert [name for name in _script._CHECKS if f"| `{name}` |" not in scripts] == []
    for name, kind in _faults.FAULTS.items():
        assert f"| `{name}` |" in faults
        assert [option for option in kind.options if f"`{option}" not in faults] == []
