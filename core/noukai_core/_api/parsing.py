"""What an HTTP response means: its JSON, or the error that it stands for. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from noukai_core._validation import is_list, is_mapping, secrets_of, without_keys
from noukai_core.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    FlowNotFoundError,
    InsufficientCreditsError,
    InvalidResponseError,
    JobNotFoundError,
    ModelKeyRejectedError,
    PermanentError,
    PermissionDeniedError,
    RateLimitError,
    RedirectError,
    TransientError,
)

E = TypeVar("E", bound=APIError)

_TRANSIENT = (408, 425, 429)
_SAID_LENGTH = 500
_SHOWN_ID = 100
_HIDDEN = "…"

_ADVICE: dict[type[APIError], str] = {
    BadRequestError: "Correct the request; the same one will be rejected again.",
    AuthenticationError: "Check the API key: it is missing, wrong or revoked.",
    InsufficientCreditsError: "Add credits to the Noukai organisation, then run this again.",
    PermissionDeniedError: "The API key may not do this: a key belongs to one project.",
    FlowNotFoundError: "Check the org, project and slug of the flow, and that this version is published.",
    ModelKeyRejectedError: "Renew the model provider's key in the settings of the Noukai project.",
    JobNotFoundError: "Check that the job id belongs to this flow; a job may also be too old to be kept.",
    RedirectError: "Redirects are not followed, so that the key stays where it belongs: check base_url.",
    InvalidResponseError: "Check base_url, and whether a proxy responds in the server's place.",
}

_FOREIGN_404 = (
    "This 404 is not in the service's own form: check base_url, and the gateway or proxy before it."
)


@dataclass(frozen=True)
class HttpResponse:
    """An HTTP response; `headers` has lower-case names."""

    status_code: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the status says success."""
        return 200 <= self.status_code < 300

    @property
    def request_id(self) -> str | None:
        """What the server calls this request."""
        return one_line(self.headers.get("x-request-id", ""))[:_SHOWN_ID] or None

    def without(self, key: str) -> HttpResponse:
        """Return the response without the key of its request, in case the server repeats it."""
        headers, body = self.headers, self.body
        for secret in secrets_of(key):
            headers = {name: value.replace(secret, _HIDDEN) for name, value in headers.items()}
            body = body.replace(secret.encode(), _HIDDEN.encode())
        return HttpResponse(self.status_code, headers, body)


def object_of(
    response: HttpResponse,
    operation: str,
    job_id: str | None = None,
    *,
    missing: type[APIError] = PermanentError,
) -> Mapping[str, Any]:
    """Return the JSON object of a successful response, or raise the error that it stands for.

    Args:
        response: The response.
        operation: What was requested, as the beginning of an error's message.
        job_id: The job that the request was about.
        missing: What a 404 stands for, unless the server's code says that the flow is missing.
    """
    if not response.ok:
        raise error_of(response, operation, job_id, missing=missing)
    value = _json(response.body)
    if not is_mapping(value):
        raise malformed(response, operation, "is not a JSON object", job_id)
    return value


def malformed(
    response: HttpResponse, operation: str, problem: str, job_id: str | None = None
) -> InvalidResponseError:
    """Return the error for a response whose content makes no sense."""
    excerpt = one_line(response.body[:200].decode("utf-8", "replace"))
    return _error(
        InvalidResponseError, response, f"{operation}: the response {problem}: {excerpt!r}", job_id=job_id
    )


def error_of(
    response: HttpResponse,
    operation: str,
    job_id: str | None = None,
    *,
    missing: type[APIError] = PermanentError,
) -> APIError:
    """Return the error that an unsuccessful response stands for."""
    code, said = _server_words(response.body)
    error_type = _error_type(response, code, missing)
    words = f": {said}" if said else ""
    headline = f"{operation}: HTTP {response.status_code}{f' {code}' if code else ''}{words}"
    return _error(error_type, response, headline, job_id=job_id, code=code)


def _error_type(response: HttpResponse, code: str | None, missing: type[APIError]) -> type[APIError]:
    status = response.status_code
    if code == "BYOK_KEY_REJECTED":
        return ModelKeyRejectedError
    if 300 <= status < 400:
        return RedirectError
    match status:
        case 400 | 413 | 422:
            return BadRequestError
        case 401:
            return AuthenticationError
        case 402:
            return InsufficientCreditsError
        case 403:
            return PermissionDeniedError
        case 404 if is_own_404(response):
            return FlowNotFoundError if code == "FLOW_NOT_FOUND" else missing
        case 404:
            return TransientError
        case 429:
            return RateLimitError
        case _ if status in _TRANSIENT or status >= 500:
            return TransientError
        case _ if 400 <= status < 500:
            return PermanentError
        case _:
            return InvalidResponseError


def _error(
    error_type: type[E], response: HttpResponse, headline: str, *, job_id: str | None, code: str | None = None
) -> E:
    quoted = f" (request id {response.request_id})" if response.request_id else ""
    advice = f" {_ADVICE[error_type]}" if error_type in _ADVICE else ""
    if response.status_code == 404 and error_type is TransientError:
        advice = f" {_FOREIGN_404}"
    pause = retry_after(response.headers.get("retry-after"))
    return error_type(
        f"{headline}{quoted}.{advice}",
        status_code=response.status_code,
        code=code,
        request_id=response.request_id,
        job_id=job_id,
        retry_after=pause,
        never_processed=response.status_code in (425, 429),
    )


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, given as seconds or as an HTTP date."""
    if value is None:
        return None
    seconds = re.fullmatch(r"\s*(\d{1,9}(\.\d{1,6})?)\s*", value, re.ASCII)
    if seconds is not None:
        return float(seconds[1])
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def is_own_404(response: HttpResponse) -> bool:
    """Tell whether a response is a 404 of the service itself, in its own form: with a code in `detail`.

    Gateways and routers send a 404 as well, many as JSON, and it means nothing about a job. To believe one
    would be to give up a job that exists, or to submit a second one.
    """
    if response.status_code != 404:
        return False
    code = mapping_of(mapping_of(_json(response.body)).get("detail")).get("code")
    return isinstance(code, str) and bool(code.strip())


def mapping_of(value: object) -> Mapping[str, Any]:
    """Return a JSON object as it is, and anything else as an empty one."""
    return value if is_mapping(value) else {}


def list_of(value: object) -> Sequence[Any]:
    """Return a JSON list as it is, and anything else as an empty one."""
    return value if is_list(value) else ()


def _json(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _server_words(body: bytes) -> tuple[str | None, str | None]:
    """Return the server's code and message, in whichever of its forms they came."""
    response = _json(body)
    if not is_mapping(response):
        return None, one_line(body[: 4 * _SAID_LENGTH].decode("utf-8", "replace")) or None
    detail: object = response.get("detail") or response.get("error") or response
    if isinstance(detail, str):
        detail = {"code": response.get("code"), "message": detail}
    failures = "; ".join(_validation_error(entry) for entry in list_of(detail)[:5])
    fields = mapping_of(detail)
    said = failures or fields.get("message")
    return _code(fields.get("code")), one_line(said if isinstance(said, str) else _as_text(detail)) or None


def _validation_error(entry: object) -> str:
    """Show one entry of FastAPI's list of validation errors."""
    fields = mapping_of(entry)
    if not fields:
        return str(entry)
    where = ".".join(str(part) for part in list_of(fields.get("loc")))
    return f"{where}: {fields.get('msg')}" if where else str(fields.get("msg"))


def _code(code: object) -> str | None:
    return one_line(code).upper()[:100] or None if isinstance(code, str) else None


def _as_text(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return "something that cannot be shown"


def job_error(value: object) -> str | None:
    """Return why a job failed, whether it came as text or as an object."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return without_keys(value)
    fields = mapping_of(value)
    code, said = _code(fields.get("code")), fields.get("message")
    if not isinstance(said, str):
        return without_keys(_as_text(value))
    return without_keys(f"{code}: {said}" if code else said)


def one_line(text: str) -> str:
    """Make a server's words fit for one line of a log, without anything that resembles a key."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = without_keys(line)
    return line if len(line) <= _SAID_LENGTH else line[:_SAID_LENGTH] + "…"
