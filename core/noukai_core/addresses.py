"""The addresses of the Noukai API."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

PRODUCTION_URL = "https://api.noukai.dev/api/v1"
DEVELOPMENT_URL = "http://localhost:8080/api/v1"


def is_loopback(url: str) -> bool:
    """Tell whether an address is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
