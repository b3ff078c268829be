"""What a block of credentials refuses, and what it stands for."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from noukai_prefect import NoukaiCredentials

KEY = "nk_test_12345678_secret"


@pytest.mark.parametrize("key", [f" {KEY}", f"{KEY}\n"])
def test_white_space_around_a_key(key: str) -> None:
    """A key that was pasted with white space is refused, and the error names the field, not the key."""
    with pytest.raises(ValidationError, match="white space") as caught:
        NoukaiCredentials(api_key=key)
    assert "api_key" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_a_block_does_not_name_is_production(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored block means the same server in every process, whatever its environment says."""
    monkeypatch.setenv("NOUKAI_BASE_URL", "http://localhost:8080/api/v1")
    with NoukaiCredentials(api_key=KEY).get_client() as client:
        assert "https://api.noukai.dev/api/v1" in repr(client)


def test_plain_http_needs_a_field() -> None:
    """A block sends its key over plain HTTP to another machine only if a field says so."""
    with pytest.raises(ValueError, match="allow_insecure_http"):
        NoukaiCredentials(api_key=KEY, base_url="http://noukai.test").get_client()
    allowed = NoukaiCredentials(api_key=KEY, base_url="http://noukai.test", allow_insecure_http=True)
    allowed.get_client().close()
