"""What a client is made with, checked once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict, TypeVar, Unpack, cast
from urllib.parse import urlsplit

from noukai_core import _validation
from noukai_core._validation import ApiKey, FlowPath
from noukai_core.addresses import DEVELOPMENT_URL, PRODUCTION_URL, is_loopback
from noukai_core.checks import check_count, check_flag, check_number, check_seconds
from noukai_core.errors import InvalidInputError

PRODUCTION_KEY = "nk_live_"
"""How the keys begin that production takes."""

_CHECK = "check"

T = TypeVar("T")


class ClientArguments(TypedDict, total=False):
    """The arguments of a client, except its key and its transport. `Noukai` describes them."""

    base_url: str | None
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
    max_followed_jobs: int
    allow_insecure_http: bool


def refuse_unknown(client: object, arguments: ClientArguments) -> None:
    """Check the names of a client's arguments.

    Raises:
        TypeError: A name is unknown.
    """
    known = ClientArguments.__annotations__
    unknown = [name for name in arguments if name not in known]
    if unknown:
        # The value may be a key under a wrong name, and some tracebacks show local variables.
        cast("dict[str, object]", arguments).clear()
        raise TypeError(
            f"{type(client).__name__}() got an unexpected keyword argument {unknown[0]!r}; "
            f"it takes api_key, {', '.join(known)} and transport"
        )


def _checked(default: T, check: Callable[[object, str], T]) -> T:
    value: T = field(default=default, metadata={_CHECK: check})
    return value


def _window(value: object, argument: str) -> float:
    return check_seconds(value, argument, zero=True)


def _interval(value: object, argument: str) -> float | None:
    return None if value is None else check_seconds(value, argument)


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """The checked settings of a client; the durations are in seconds."""

    api_key: str = field(repr=False)
    base_url: str
    org: str | None = None
    project: str | None = None
    timeout: float = _checked(30.0, check_seconds)
    poll_interval: float | None = _checked(None, _interval)
    retry_timeout: float = _checked(300.0, _window)
    not_found_grace: float = _checked(60.0, _window)
    recovery_timeout: float = _checked(60.0, _window)
    max_polls_per_second: float = _checked(50.0, check_number)
    max_concurrent_submissions: int = _checked(16, check_count)
    max_response_bytes: int = _checked(64 * 1024 * 1024, check_count)
    max_followed_jobs: int = _checked(50, check_count)
    allow_insecure_http: bool = _checked(default=False, check=check_flag)

    def __post_init__(self) -> None:
        for option in fields(self):
            if check := option.metadata.get(_CHECK):
                object.__setattr__(self, option.name, check(getattr(self, option.name), option.name))

    @classmethod
    def of(cls, *, api_key: str | None, **arguments: Unpack[ClientArguments]) -> ClientOptions:
        """Check the arguments of a client, and fill in what the environment has."""
        org, project = _validation.org_and_project(arguments.get("org"), arguments.get("project"))
        key = ApiKey(_validation.api_key(os.environ.get("NOUKAI_API_KEY") if api_key is None else api_key))
        insecure = check_flag(arguments.get("allow_insecure_http", False), "allow_insecure_http")
        checked: dict[str, Any] = {
            **arguments,
            "api_key": key,
            "base_url": _base_url(arguments.get("base_url"), key, insecure),
            "org": org,
            "project": project,
        }
        return cls(**checked)

    def flow_path(self, flow: str) -> FlowPath:
        """Resolve a flow's name inside this client's org and project."""
        return _validation.flow_path(flow, self.org, self.project)


def describe(client: object) -> str:
    """Return how a client shows itself, also in the traceback of arguments that it did not take."""
    settings: ClientOptions | None = vars(client).get("_settings")
    address = f"base_url={settings.base_url!r}" if settings else ""
    return f"{type(client).__name__}({address})"


def _base_url(given: str | None, key: str, allow_insecure_http: bool) -> str:
    url = _validation.base_url(
        os.environ.get("NOUKAI_BASE_URL") or _default_url() if given is None else given
    )
    if given is None and is_loopback(url) and key.startswith(PRODUCTION_KEY):
        raise InvalidInputError(
            f"The API key begins with {PRODUCTION_KEY}, but NOUKAI_BASE_URL or NOUKAI_ENV names the local "
            f"server {url}: unset the variable, use a test key, or pass base_url to send the key there"
        )
    if urlsplit(url).scheme == "http" and not is_loopback(url) and not allow_insecure_http:
        raise InvalidInputError(
            f"base_url {url} is not https: the API key and the data of jobs would travel unencrypted. Use "
            "https, or set allow_insecure_http if nobody can listen on the way"
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
