"""What a caller may pass.

Each check raises `InvalidInputError`, which names the argument, the value and what is allowed.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections import UserString
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, SupportsIndex, TypeAlias, TypeGuard
from urllib.parse import SplitResult, urlsplit

from noukai_core.errors import InvalidInputError

Version: TypeAlias = Literal["production", "draft"] | int | str

CALLBACK_EVENTS = ("flow.completed", "flow.failed")

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,48}[a-z0-9])", re.ASCII)
_KEY = re.compile(r"nk_[\x21-\x7e]+", re.ASCII)
# A name such as bank_account holds no key; behind a letter only what has the shape of one is masked.
_KEY_IN_TEXT = re.compile(
    r"(?:(?<![A-Za-z])|(?<=\\[abfnrtv]))nk_[\x21-\x7e]+|nk_(?:live|test)[\x21-\x7e]+", re.ASCII
)
_JOB_ID = re.compile(r"[\x21-\x2e\x30-\x5b\x5d-\x7e]{1,255}", re.ASCII)
_RESERVED_PARAMETER = "attachments"
_SHOWN_LENGTH = 80
_MAX_ADDRESS = 2000
_SECRET_LENGTH = 16

# Python itself refuses to read or write whole numbers beyond some 14,000 bits (4,300 digits) as text.
_INTEGER_BITS = 10_000


class ApiKey(str):
    """A key that does not show itself in a list of values, such as a traceback with local variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'nk_…'"

    def __format__(self, _: str) -> str:
        return "nk_…"

    def __getitem__(self, index: SupportsIndex | slice) -> ApiKey:
        return ApiKey(super().__getitem__(index))


class FlowPath(NamedTuple):
    """The address of a flow."""

    org: str
    project: str
    slug: str

    def __str__(self) -> str:
        return "/".join(self)


def is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Tell whether a value maps keys to values."""
    return isinstance(value, Mapping)


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Tell whether a value is what JSON calls a list."""
    return isinstance(value, list | tuple)


def _is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Tell whether a value is a list in a caller's eyes, such as Airflow's outputs of a mapped task."""
    return isinstance(value, Sequence) and not isinstance(
        value, str | bytes | bytearray | memoryview | UserString
    )


def is_set(value: object) -> TypeGuard[Set[Any]]:
    """Tell whether a value is a set."""
    return isinstance(value, Set)


def without_keys(text: str) -> str:
    """Mask everything in a text that resembles a key."""
    return _KEY_IN_TEXT.sub("nk_…", text)


def hidden(key: str | None) -> str | None:
    """Return a key, checked or not, in the form that does not show itself."""
    return ApiKey(key) if isinstance(key, str) else key


def secrets_of(key: str) -> tuple[str, ...]:
    """Return what nobody may see of a key: all of it, and its last part alone, where the secret is."""
    last = key.rpartition("_")[2]
    return (key, last) if len(last) >= _SECRET_LENGTH else (key,)


def without_secrets(text: str, secrets: Sequence[str]) -> str:
    """Mask secrets in a text."""
    for secret in secrets:
        text = text.replace(secret, "…")
    return text


def refused(message: str) -> InvalidInputError:
    """Return the error for a wrong argument, with every key masked."""
    return InvalidInputError(without_keys(message))


def api_key(key: object) -> str:
    """Check a key without ever showing it."""
    if key is None or key == "":
        raise refused("api_key is missing: pass one, or set NOUKAI_API_KEY")
    if not isinstance(key, str) or not _KEY.fullmatch(key.strip()):
        raise refused("api_key does not look like a Noukai key: one begins with nk_ and has no spaces")
    return ApiKey(key.strip())


def base_url(url: object) -> str:
    """Check the address of the API; returned without a slash at the end."""
    allowed = "an address such as https://api.noukai.dev/api/v1"
    if not isinstance(url, str):
        raise refused(f"base_url is {shown(url)}, but must be {allowed}")
    parts = split_url(url.strip(), "base_url", allowed)
    if len(url) > _MAX_ADDRESS:
        raise refused(f"base_url has {len(url)} characters, but must have at most {_MAX_ADDRESS}")
    if parts.scheme not in ("http", "https") or not parts.hostname or has_space(url.strip()):
        raise refused(f"base_url is {shown(url)}, but must be {allowed}")
    if "?" in url or "#" in url:
        raise refused("base_url has a query or a fragment, but must be only " + allowed)
    return url.strip().rstrip("/")


def split_url(url: str, argument: str, allowed: str) -> SplitResult:
    """Read an address, which must not carry a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise refused(f"{argument} is not a valid address: it must be {allowed}") from None
    if parts.username is not None or parts.password is not None:
        raise refused(f"{argument} carries a user name or password, which are not used here")
    return parts


def has_space(text: str) -> bool:
    """Tell whether a text has spaces or characters that are not printable."""
    return any(character.isspace() or not character.isprintable() for character in text)


def flow_path(flow: object, org: str | None, project: str | None) -> FlowPath:
    """Resolve `org/project/slug`, or a slug alone inside the client's org and project."""
    if not isinstance(flow, str):
        raise refused(f"flow is {shown(flow)}, but must be a string such as 'acme/spelling/grade-3'")
    parts = flow.split("/")
    if len(parts) == 3:
        return FlowPath(
            slug(parts[0], "the org of flow"), slug(parts[1], "the project of flow"), slug(parts[2], "flow")
        )
    if len(parts) != 1:
        raise refused(f"flow is {shown(flow)}, but must be 'org/project/slug' or a slug alone")
    name = slug(flow, "flow")
    if org is None or project is None:
        raise refused(
            f"flow is {shown(flow)}, a slug alone, but org and project are not set: write "
            f"'org/project/{name}', or set both on the client"
        )
    return FlowPath(org, project, name)


def slug(value: object, argument: str) -> str:
    """Check one part of a flow's address."""
    if not isinstance(value, str) or not _SLUG.fullmatch(value):
        raise refused(
            f"{argument} is {shown(value)}, but a slug has 2 to 50 lowercase letters, digits and hyphens, "
            "with no hyphen at either end"
        )
    return value


def org_and_project(org: object, project: object) -> tuple[str, str] | tuple[None, None]:
    """Check the client's defaults: both, or neither."""
    if org is None and project is None:
        return None, None
    if org is None or project is None:
        given, missing = ("project", "org") if org is None else ("org", "project")
        raise refused(f"{given} is set but {missing} is not: set both, or neither")
    return slug(org, "org"), slug(project, "project")


def version_number(version: object) -> int | None:
    """Return the number of a published version, 0 for the draft, `None` for production."""
    match version:
        case "production" | None:
            return None
        case "draft":
            return 0
        case int() if not isinstance(version, bool) and 0 <= version < 10**9:
            return int(version)
        case str() if version.isascii() and version.isdigit() and len(version) <= 9:
            return int(version)
        case _:
            raise refused(
                f"version is {shown(version)}, but must be 'production', 'draft' or the number of a version"
            )


def job_id(value: object) -> str:
    """Check the id of a job."""
    if not isinstance(value, str) or not _JOB_ID.fullmatch(value) or value in (".", ".."):
        raise refused(
            f"job_id is {shown(value)}, but must be the id that the submission returned: "
            "printable ASCII without spaces or slashes"
        )
    return value


def flow_id(value: object) -> str:
    """Check the id of a flow, which is not its path."""
    if not isinstance(value, str) or not _JOB_ID.fullmatch(value):
        raise refused(
            f"flow_id is {shown(value)}, but must be the id that the server gave the flow (flowId in its "
            "responses), not its path"
        )
    return value


def session_id(value: object, argument: str = "session_id") -> str:
    """Check a session's id, which is a UUID."""
    try:
        return str(uuid.UUID(str(value)))
    except ValueError:
        raise refused(f"{argument} is {shown(value)}, but must be a UUID") from None


def moment(value: object, argument: str) -> datetime:
    """Check a point in time, which must know its time zone."""
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise refused(f"{argument} is {shown(value)}, but must be a datetime with a time zone")
    try:
        return value.astimezone(UTC)
    except (OverflowError, ValueError):
        raise refused(f"{argument} is {shown(value)}, which is no time in UTC") from None


def flag(value: object, argument: str) -> bool:
    """Check that a value is True or False, and not something that only counts as such."""
    if not isinstance(value, bool):
        raise refused(f"{argument} is {shown(value)}, but must be True or False")
    return value


def job_body(
    *,
    message: object = None,
    parameters: object = None,
    block_overrides: object = None,
    trace: object = False,
    callback_url: object = None,
    callback_events: object = None,
) -> bytes:
    """Check what is submitted, and return it as the bytes of the request's body."""
    if message is not None and not isinstance(message, str):
        raise refused(f"message is {shown(message)}, but must be a string")
    body: dict[str, Any] = {"message": message, "trace": flag(trace, "trace") or None}
    body["parameters"] = _object(parameters, "parameters")
    body["blockOverrides"] = _object(block_overrides, "block_overrides")
    _check_parameters(message, body["parameters"])
    _check_overrides(body["blockOverrides"])
    body["callbackUrl"] = _callback_url(callback_url)
    body["callbackEvents"] = _callback_events(callback_events, callback_url)
    given = {name: value for name, value in body.items() if value is not None}
    try:
        return json.dumps(given, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise refused("message or parameters hold half of a surrogate pair, which is not text") from None


def _check_parameters(message: str | None, parameters: dict[str, Any] | None) -> None:
    if not message and not parameters:
        raise refused("neither message nor parameters is given: a job needs one of them")
    if parameters and _RESERVED_PARAMETER in parameters:
        raise refused(f"parameters has the key {_RESERVED_PARAMETER!r}, which Noukai reserves")


def _check_overrides(overrides: dict[str, Any] | None) -> None:
    for step, values in (overrides or {}).items():
        if not isinstance(values, Mapping):
            raise refused(f"block_overrides[{step!r}] is {shown(values)}, but must be an object")


def _object(value: object, argument: str) -> dict[str, Any] | None:
    if value is None:
        return None
    if not is_mapping(value):
        raise refused(f"{argument} is {shown(value)}, but must be a mapping that JSON can carry")
    try:
        return _plain_mapping(value, argument, (id(value),))
    except RecursionError:
        raise refused(f"{argument} is nested too deeply for JSON") from None
    except InvalidInputError:
        raise
    except Exception as error:
        raise _unreadable(argument, error) from error


def copied(mapping: Mapping[Any, Any], where: str) -> dict[Any, Any]:
    """Copy a mapping, which may be of a user's own class and raise anything."""
    try:
        return dict(mapping)
    except Exception as error:
        raise _unreadable(where, error) from error


def _unreadable(where: str, error: Exception) -> InvalidInputError:
    return refused(f"{where} cannot be read: it raised {type(error).__name__}")


def check_input_key(key: object, where: str) -> None:
    """Check a caller's own name of an input, which is written into files beside its outcome."""
    if key is None:
        return
    if not isinstance(key, str):
        raise refused(f"{where} is {shown(key)}, but must be a string")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise refused(f"{where} holds half of a surrogate pair, which is not text") from None


def _plain(value: object, where: str, parents: tuple[int, ...]) -> Any:
    """Copy what JSON can carry, and say where something is that it cannot."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        if value.bit_length() > _INTEGER_BITS:
            raise refused(f"{where} is a number of {value.bit_length()} bits, which JSON readers do not take")
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise refused(f"{where} is {value}, which JSON cannot carry")
    if id(value) in parents:
        raise refused(f"{where} contains itself, which JSON cannot carry")
    parents = (*parents, id(value))
    if is_mapping(value):
        return _plain_mapping(value, where, parents)
    if _is_sequence(value):
        return [_plain(item, f"{where}[{index}]", parents) for index, item in enumerate(value)]
    raise refused(f"{where} is {shown(value)}, which JSON cannot carry")


def _plain_mapping(value: Mapping[Any, Any], where: str, parents: tuple[int, ...]) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise refused(f"{where} has the key {shown(key)}, but keys must be strings")
    return {key: _plain(item, f"{where}[{key!r}]", parents) for key, item in value.items()}


def _callback_url(url: object) -> str | None:
    if url is None:
        return None
    allowed = "a public https address"
    if not isinstance(url, str):
        raise refused(f"callback_url is {shown(url)}, but must be {allowed}")
    parts = split_url(url, "callback_url", allowed)
    if parts.scheme != "https" or not parts.hostname or has_space(url):
        raise refused(f"callback_url is {shown(url)}, but must be {allowed}")
    return url


def _callback_events(events: object, url: object) -> list[str] | None:
    if events is None:
        return None
    allowed = "some of " + ", ".join(CALLBACK_EVENTS)
    if not (is_list(events) or is_set(events)) or not events:
        raise refused(f"callback_events is {shown(events)}, but must be {allowed}")
    for event in events:
        if event not in CALLBACK_EVENTS:
            raise refused(f"callback_events has {shown(event)}, but must be {allowed}")
    if url is None:
        raise refused("callback_events is set but callback_url is not")
    return [event for event in CALLBACK_EVENTS if event in events]


def shown(value: object) -> str:
    """Show a value in a message: masked before it is cut, so that no part of a key is left."""
    try:
        text = without_keys(repr(value))
    except Exception:  # a user's own __repr__ must not hide the message
        text = type(value).__name__
    if len(text) > _SHOWN_LENGTH:
        text = text[:_SHOWN_LENGTH] + "…"
    return text if isinstance(value, str) else f"{text} ({type(value).__name__})"
