"""What the service checks in a submission before it creates a job."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from noukai_core.emulator._jobs import JOB_SPEC_PARAMETER
from noukai_core.emulator._responses import CALLBACK_EVENTS, InvalidBodyError, RejectionError, no_such
from noukai_core.emulator._script import checked
from noukai_core.emulator._validation import is_object, parse_json

_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,48}[a-z0-9]")
_VERSION = re.compile(r"v(0|[1-9][0-9]{0,8})")
_EVENTS = tuple(CALLBACK_EVENTS.values())
_RESERVED = "attachments"


def flow_path(org: str, project: str, slug: str) -> str:
    """Return a flow's path from its three parts. Malformed parts name no flow."""
    if not all(_SLUG.fullmatch(part) for part in (org, project, slug)):
        raise no_such("flow")
    return f"{org}/{project}/{slug}"


def version_number(segment: str | None) -> int | None:
    """Parse the version segment: `v0` is the draft, no segment is production."""
    if segment is None:
        return None
    found = _VERSION.fullmatch(segment)
    if found is None:
        raise RejectionError(400, "INVALID_VERSION", "A version is v followed by a number; v0 is the draft.")
    return int(found[1])


def session_id(text: str | None) -> str | None:
    """Check the session id, a UUID that the client has chosen."""
    try:
        return None if text is None else str(UUID(text))
    except ValueError:
        raise RejectionError(400, "SESSION_ID_INVALID", "X-Session-Id must be a UUID.") from None


def parse_body(raw: bytes) -> dict[str, Any]:
    """Parse and check the body of a submission."""
    try:
        body = parse_json(raw)
    except ValueError:
        raise InvalidBodyError(("body",), "JSON decode error") from None
    if not is_object(body):
        raise InvalidBodyError(("body",), "Input should be an object")
    given = {name: value for name, value in body.items() if value is not None}
    _check_form(given)
    _check_rules(given)
    return given


def job_spec(body: dict[str, Any]) -> dict[str, Any]:
    """Return the specification that a submission carries in its parameters."""
    try:
        return checked(
            body.get("parameters", {}).get(JOB_SPEC_PARAMETER, {}), f"parameters[{JOB_SPEC_PARAMETER!r}]"
        )
    except ValueError as error:
        raise RejectionError(400, "EMULATOR_SPEC_INVALID", str(error)) from None


def _check_form(body: dict[str, Any]) -> None:
    forms = {"message": str, "parameters": dict, "blockOverrides": dict, "trace": bool, "callbackUrl": str}
    for name, form in forms.items():
        if name in body and not isinstance(body[name], form):
            raise InvalidBodyError(("body", name), f"Input should be of type {form.__name__}")
    for step, values in body.get("blockOverrides", {}).items():
        if not isinstance(values, dict):
            raise InvalidBodyError(("body", "blockOverrides", step), "Input should be an object")
    if not isinstance(body.get("callbackEvents", []), list):
        raise InvalidBodyError(("body", "callbackEvents"), "Input should be a list")


def _check_rules(body: dict[str, Any]) -> None:
    if body.get("tools"):
        raise RejectionError(400, "TOOLS_REQUIRE_SYNC_EXECUTE", "Tools can be called by /execute only.")
    if _RESERVED in body.get("parameters", {}):
        raise RejectionError(400, "PARAMETER_NAME_RESERVED", f"The parameter name {_RESERVED!r} is reserved.")
    if not body.get("message") and not body.get("parameters"):
        raise RejectionError(400, "MISSING_MESSAGE", "A job needs a message or parameters.")
    if "callbackUrl" in body and not _is_https(body["callbackUrl"]):
        raise RejectionError(400, "INVALID_CALLBACK_URL", "callbackUrl must be a public https address.")
    for event in body.get("callbackEvents", []):
        if event not in _EVENTS:
            raise RejectionError(
                400, "INVALID_CALLBACK_EVENT", f"callbackEvents may hold {', '.join(_EVENTS)}."
            )


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" and bool(parts.hostname)
