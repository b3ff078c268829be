"""What the service checks in a submission before there is a job."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from noukai_core.emulator._checks import is_object, json_of
from noukai_core.emulator._jobs import OWN_SPEC
from noukai_core.emulator._responses import CALLBACK_EVENTS, InvalidBody, Refusal, no_such
from noukai_core.emulator._script import checked

_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,48}[a-z0-9]")
_VERSION = re.compile(r"v(0|[1-9][0-9]{0,8})")
_EVENTS = tuple(CALLBACK_EVENTS.values())
_RESERVED = "attachments"


def flow_path(org: str, project: str, slug: str) -> str:
    """Check the three parts of a flow's path: one of another shape names no flow."""
    if not all(_SLUG.fullmatch(part) for part in (org, project, slug)):
        raise no_such("flow")
    return f"{org}/{project}/{slug}"


def version_number(segment: str | None) -> int | None:
    """Read the version's segment: `v0` is the draft, no segment is production."""
    if segment is None:
        return None
    found = _VERSION.fullmatch(segment)
    if found is None:
        raise Refusal(400, "INVALID_VERSION", "A version is v followed by a number; v0 is the draft.")
    return int(found[1])


def session_id(text: str | None) -> str | None:
    """Check the session's id, which is a UUID that the client has made."""
    try:
        return None if text is None else str(UUID(text))
    except ValueError:
        raise Refusal(400, "SESSION_ID_INVALID", "X-Session-Id must be a UUID.") from None


def body_of(raw: bytes) -> dict[str, Any]:
    """Read and check what is submitted."""
    try:
        body = json_of(raw)
    except ValueError:
        raise InvalidBody(("body",), "JSON decode error") from None
    if not is_object(body):
        raise InvalidBody(("body",), "Input should be an object")
    given = {name: value for name, value in body.items() if value is not None}
    _check_form(given)
    _check_rules(given)
    return given


def own_spec(body: dict[str, Any]) -> dict[str, Any]:
    """Return how this one job is to behave, which a submission to the emulator may say in its parameters."""
    try:
        return checked(body.get("parameters", {}).get(OWN_SPEC, {}), f"parameters[{OWN_SPEC!r}]")
    except ValueError as error:
        raise Refusal(400, "EMULATOR_SPEC_INVALID", str(error)) from None


def _check_form(body: dict[str, Any]) -> None:
    forms = {"message": str, "parameters": dict, "blockOverrides": dict, "trace": bool, "callbackUrl": str}
    for name, form in forms.items():
        if name in body and not isinstance(body[name], form):
            raise InvalidBody(("body", name), f"Input should be of the type {form.__name__}")
    for step, values in body.get("blockOverrides", {}).items():
        if not isinstance(values, dict):
            raise InvalidBody(("body", "blockOverrides", step), "Input should be an object")
    if not isinstance(body.get("callbackEvents", []), list):
        raise InvalidBody(("body", "callbackEvents"), "Input should be a list")


def _check_rules(body: dict[str, Any]) -> None:
    if body.get("tools"):
        raise Refusal(400, "TOOLS_REQUIRE_SYNC_EXECUTE", "Tools can be called by /execute only.")
    if _RESERVED in body.get("parameters", {}):
        raise Refusal(400, "PARAMETER_NAME_RESERVED", f"The parameter name {_RESERVED!r} is reserved.")
    if not body.get("message") and not body.get("parameters"):
        raise Refusal(400, "MISSING_MESSAGE", "A job needs a message or parameters.")
    if "callbackUrl" in body and not _is_https(body["callbackUrl"]):
        raise Refusal(400, "INVALID_CALLBACK_URL", "callbackUrl must be a public https address.")
    for event in body.get("callbackEvents", []):
        if event not in _EVENTS:
            raise Refusal(400, "INVALID_CALLBACK_EVENT", f"callbackEvents may hold {', '.join(_EVENTS)}.")


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" and bool(parts.hostname)
