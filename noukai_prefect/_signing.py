"""Signatures of stored records, since other people may be able to write artifacts.

A signature is a MAC made with the API key that submits the jobs. It covers the run, so a record that was
copied from another run is worth nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from pydantic import SecretStr

_PURPOSE = b"noukai_prefect record"
_DIGITS = 32


class RecordSigner:
    """Signs and verifies the records of one run.

    Args:
        api_key: The key that submits the jobs.
        scope: The run; see `RunContext.scope`.
    """

    def __init__(self, api_key: SecretStr, scope: UUID) -> None:
        self._key = hmac.new(api_key.get_secret_value().encode(), _PURPOSE, hashlib.sha256).digest()
        self._scope = str(scope)

    def sign(self, content: Mapping[str, Any]) -> str:
        """Return the signature of a record's content."""
        text = json.dumps([self._scope, dict(content)], sort_keys=True)
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()[:_DIGITS]

    def verify(self, content: Mapping[str, Any], signature: object) -> bool:
        """Return whether a record's content has a valid signature."""
        return isinstance(signature, str) and hmac.compare_digest(
            self.sign(content).encode(), signature.encode()
        )
