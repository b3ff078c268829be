"""What the emulator refuses, hides and leaves alone."""

from __future__ import annotations

import stat
from pathlib import Path

import httpx
import pytest

from noukai_core.emulator import Emulator

KEY = {"Authorization": "Bearer nk_test_12345678_secret"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.test"},
        {"Host": "evil.test:8090"},
        {"Host": "10.0.0.1"},
        {"Host": "localhost/?"},
        {"Host": "evil.test@localhost"},
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/keys/verify", "/_emulator/jobs"])
def test_a_page_in_a_browser_is_refused(emulator: Emulator, headers: dict[str, str], path: str) -> None:
    """A page from elsewhere can neither read jobs nor control the emulator, whatever its name resolves to."""
    url = emulator.base_url.removesuffix("/api/v1") + path
    assert httpx.get(url, headers=KEY | headers, trust_env=False).status_code == 403
    for good in ({"Host": "localhost"}, {"Origin": emulator.base_url}, {"Host": "[::1]:8090"}):
        assert httpx.get(url, headers=KEY | good, trust_env=False).status_code == 200


def test_the_log_shows_no_secret(emulator: Emulator) -> None:
    """Headers that carry secrets are masked in the request log."""
    headers = {"X-Api-Key": "hush", "Cookie": "a=hush", "Proxy-Authorization": "Basic hush"}
    httpx.get(f"{emulator.base_url}/keys/verify", headers=KEY | headers, trust_env=False)
    assert "hush" not in str(emulator.control.requests())


def test_listening_beyond_this_machine_is_warned_of() -> None:
    """An address that others can reach is worth a warning; one of this machine is not."""
    Emulator(host="127.0.0.1").close()
    with pytest.warns(UserWarning, match=r"0\.0\.0\.0"):
        Emulator(host="0.0.0.0").close()


@pytest.mark.parametrize("content", [b"precious, and no line break", b"[1]\nprecious", b"1\n2\n", b"{}\n{"])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """A file that is not the emulator's own state keeps every byte."""
    file = tmp_path / "notes"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="not a state file"):
        Emulator(state_file=file)
    assert file.read_bytes() == content


def test_only_the_owner_reads_the_state_file(tmp_path: Path) -> None:
    """What jobs were given and returned is for the user who runs the emulator."""
    Emulator(state_file=tmp_path / "jobs").close()
    assert stat.S_IMODE((tmp_path / "jobs").stat().st_mode) == 0o600
