"""The Python examples of the README are Python, and those of the job client run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

README = Path(__file__).resolve().parents[2] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
OF_THE_CLIENT = [code for code in EXAMPLES if "airflow" not in code and "prefect" not in code]


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_is_python(code: str) -> None:
    """Every Python example of the README compiles."""
    compile(code, str(README), "exec")


@pytest.mark.parametrize("code", OF_THE_CLIENT)
def test_an_example_of_the_client_runs(
    code: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's examples of the job client run against a local Noukai."""
    monkeypatch.setenv("NOUKAI_API_KEY", "nk_test_readme")
    monkeypatch.setenv("NOUKAI_BASE_URL", emulator.base_url)

    exec(compile(code, str(README), "exec"), {"__name__": "readme"})


def test_the_client_has_examples() -> None:
    """The README shows the job client, a recovered submission, and the emulator."""
    assert len(OF_THE_CLIENT) >= 3
