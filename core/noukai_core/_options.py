"""What a client is made with, checked once."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from noukai_core import _validation
from noukai_core._validation import FlowPath
from noukai_core.checks import check_count, check_number, check_seconds
from noukai_core.errors import InvalidInputError

PRODUCTION_URL = "https://api.noukai.dev/api/v1"
DEVELOPMENT_URL = "http://localhost:8080/api/v1"

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """The checked settings of a client; the durations are in seconds."""

    api_key: str = field(repr=False)
    base_url: str
    org: str | None
    project: str | None
    timeout: float
    poll_interval: float | None
    retry_timeout: float
    not_found_grace: float
    recovery_timeout: float
    max_polls_per_second: float
    max_concurrent_submissions: int
    max_response_bytes: int

    @classmethod
    def of(
        cls,
        *,
        api_key: str | None,
        base_url: str | None,
        org: str | None,
        project: str | None,
        timeout: float,
        poll_interval: float | None,
        retry_timeout: float,
        not_found_grace: float,
        recovery_timeout: float,
        max_polls_per_second: float,
        max_concurrent_submissions: int,
        max_response_bytes: int,
    ) -> ClientOptions:
        """Check the arguments of a client, and fill in what the environment has."""
        checked_org, checked_project = _validation.org_and_project(org, project)
        return cls(
            api_key=_validation.api_key(os.environ.get("NOUKAI_API_KEY") if api_key is None else api_key),
            base_url=_base_url(base_url),
            org=checked_org,
            project=checked_project,
            timeout=check_seconds(timeout, "timeout"),
            poll_interval=None if poll_interval is None else check_seconds(poll_interval, "poll_interval"),
            retry_timeout=check_seconds(retry_timeout, "retry_timeout", zero=True),
            not_found_grace=check_seconds(not_found_grace, "not_found_grace", zero=True),
            recovery_timeout=check_seconds(recovery_timeout, "recovery_timeout", zero=True),
            max_polls_per_second=check_number(max_polls_per_second, "max_polls_per_second"),
            max_concurrent_submissions=check_count(max_concurrent_submissions, "max_concurrent_submissions"),
            max_response_bytes=check_count(max_response_bytes, "max_response_bytes"),
        )

    def flow_path(self, flow: str) -> FlowPath:
        """Resolve a flow's name inside this client's org and project."""
        return _validation.flow_path(flow, self.org, self.project)


def describe(client: object) -> str:
    """Return how a client shows itself, also in the traceback of arguments that it did not take."""
    settings: ClientOptions | None = vars(client).get("_settings")
    address = f"base_url={settings.base_url!r}" if settings else ""
    return f"{type(client).__name__}({address})"


def _base_url(given: str | None) -> str:
    url = _validation.base_url(
        os.environ.get("NOUKAI_BASE_URL") or _default_url() if given is None else given
    )
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        warnings.warn(
            f"base_url {url} is not https: the API key and the data of jobs travel unencrypted",
            UserWarning,
            stacklevel=4,
        )
    return url


def _default_url() -> str:
    match os.environ.get("NOUKAI_ENV", "").strip().lower():
        case "dev" | "development" | "local":
            return DEVELOPMENT_URL
        case "" | "prod" | "production":
            return PRODUCTION_URL
        case other:
            raise InvalidInputError(f"NOUKAI_ENV is {other!r}, but must be 'dev' or 'prod'")
