"""What an HTTP response means: its JSON, or the error that it stands for. No I/O."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from noukai_core._api import bounded_json
from noukai_core._text import LINE_LENGTH, one_line, shortened
from noukai_core._validation import is_list, is_mapping, secrets_of, without_keys, without_secrets
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
    ResponseTooLargeError,
    TransientError,
)

E = TypeVar("E", bound=APIError)

_TRANSIENT = (408, 425, 429)
_SHOWN_ID = 100
_EXCERPT_LENGTH = 200
_MEMORY = 64 * 1024 * 1024

TEXT_LENGTH = 64 * 1024
"""How many characters of a job's error, and of its progress, are kept."""

_ESCAPED_ASCII = re.compile(rb"\\u00([0-7][0-9a-fA-F])")

_ADVICE: dict[type[APIError], str] = {
    BadRequestError: "Correct the request; the same one will be rejected again.",
    AuthenticationError: "Check the API key: it is missing, wrong or revoked.",
    InsufficientCreditsError: "Add credits to the Noukai organisation, then run this again.",
    PermissionDeniedError: "The API key may not do this: a key belongs to one project.",
    FlowNotFoundError: "Check the org, project and slug of the flow, and that this version is published.",
    ModelKeyRejectedError: "Renew the model provider's key in the settings of the Noukai project.",
    JobNotFoundError: "Check that the job id belongs to this flow; a job may also be too old to be kept.",
    RedirectError: "Redirects are not followed, so that the key stays where it belongs: check base_url.",
    ResponseTooLargeError: "Raise max_response_bytes if the flow's output is meant to be so large.",
    InvalidResponseError: "Check base_url, and whether a proxy responds in the server's place.",
}

_FOREIGN_404 = (
    "This 404 is not in the service's own form, or it is from a cache: check base_url, and the gateway or "
    "proxy before it."
)


@dataclass(frozen=True)
class HttpResponse:
    """An HTTP response; `headers` has lower-case names."""

    status_code: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool = False
    memory: int = _MEMORY
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def ok(self) -> bool:
        """Whether the status says success."""
        return 200 <= self.status_code < 300

    @property
    def request_id(self) -> str | None:
        """What the server calls this request."""
        return one_line(self.headers.get("x-request-id", ""), _SHOWN_ID).rstrip("…") or None

    @property
    def age(self) -> int:
        """How many seconds ago a cache stored the response; 0 if it comes from the server itself."""
        age = self.headers.get("age", "").strip()
        return int(age) if re.fullmatch(r"\d{1,9}", age, re.ASCII) else 0

    def hiding(self, key: str) -> HttpResponse:
        """Return the response so that what is read of it shows nothing of the key, should it repeat it."""
        secrets = secrets_of(key)
        headers = {name: without_secrets(value, secrets) for name, value in self.headers.items()}
        return replace(self, headers=headers, secrets=secrets)

    def masked(self, value: Any) -> Any:
        """Return a value that was parsed from the body without the key, however the body spells it."""
        if self._may_repeat_key:
            return _masked(value, self.secrets)
        return value

    @property
    def _may_repeat_key(self) -> bool:
        return any(
            secret.encode() in self.body or '"' in secret or "\\" in secret for secret in self.secrets
        ) or (bool(self.secrets) and (b"\\u00" in self.body or b"\\/" in self.body))

    def excerpt(self) -> str:
        """Return the beginning of the body as text, for a message."""
        begin = self.body[: 16 * LINE_LENGTH].replace(b"\0", b"").replace(b"\\/", b"/")
        begin = _ESCAPED_ASCII.sub(lambda found: bytes.fromhex(found[1].decode()), begin)
        return without_secrets(begin.decode("utf-8", "replace"), self.secrets)


def _masked(value: Any, secrets: tuple[str, ...]) -> Any:
    """Mask secrets in a value of JSON, in place as far as possible: a copy would double its memory."""
    if isinstance(value, str):
        return without_secrets(value, secrets)
    if isinstance(value, list):
        items: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
        for index, item in enumerate(items):
            if isinstance(item, str | list | dict):
                items[index] = _masked(item, secrets)
    elif isinstance(value, dict):
        fields: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        for name, item in fields.items():
            if isinstance(item, str | list | dict):
                fields[name] = _masked(item, secrets)
        if any(secret in name for name in fields for secret in secrets):
            return {without_secrets(name, secrets): item for name, item in fields.items()}
    return value  # pyright: ignore[reportUnknownVariableType]


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
    try:
        value = response.masked(bounded_json.parse(response.body, response.memory))
    except bounded_json.TooMuchMemoryError:
        raise too_large(response, operation, "has too many values", job_id) from None
    except ValueError as error:
        raise malformed(response, operation, f"is not JSON ({one_line(str(error), 100)})", job_id) from None
    if not is_mapping(value):
        raise malformed(response, operation, "is not a JSON object", job_id)
    return value


def beginning_of(
    response: HttpResponse, operation: str, job_id: str | None = None, *, missing: type[APIError]
) -> tuple[Mapping[str, Any], bool]:
    """Return what the beginning of a successful response says, without its result.

    Returns:
        The JSON object, and whether there may be more of it.
    """
    if not response.ok:
        raise error_of(response, operation, job_id, missing=missing)
    try:
        value, more = bounded_json.parse_beginning(response.body, response.memory, partial=response.truncated)
    except bounded_json.TooMuchMemoryError:
        raise too_large(response, operation, "has too many values", job_id) from None
    except ValueError as error:
        raise malformed(response, operation, f"is not JSON ({one_line(str(error), 100)})", job_id) from None
    if not is_mapping(value):
        raise malformed(response, operation, "is not a JSON object", job_id)
    fields = {name: item for name, item in value.items() if name != "result"}
    return response.masked(fields), more


def too_large(
    response: HttpResponse, operation: str, fault: str, job_id: str | None = None
) -> ResponseTooLargeError:
    """Return the error for a response that would take more memory or time than allowed."""
    return _error(ResponseTooLargeError, response, f"{operation}: the response {fault}", job_id=job_id)


def malformed(
    response: HttpResponse, operation: str, problem: str, job_id: str | None = None
) -> InvalidResponseError:
    """Return the error for a response whose content makes no sense."""
    excerpt = one_line(response.excerpt(), _EXCERPT_LENGTH)
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
    code, said = _server_words(response)
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
    pause = retry_after(response.headers.get("retry-after"), _date(response.headers.get("date", "")))
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
    """Return the seconds that a `Retry-After` header asks for, given as seconds or as an HTTP date.

    Args:
        value: The header.
        now: What time it is for the server, whose clock may be wrong; by default as here.
    """
    if value is None:
        return None
    seconds = re.fullmatch(r"\s*(\d{1,9}(\.\d{1,6})?)\s*", value, re.ASCII)
    if seconds is not None:
        return float(seconds[1])
    date = _date(value)
    return None if date is None else max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def is_own_404(response: HttpResponse) -> bool:
    """Tell whether a response is a 404 of the service itself, in its own form: with a code in `detail`.

    Gateways and routers send a 404 as well, many as JSON, and it means nothing about a job. Nor does one that
    a cache has kept. To believe one would be to give up a job that exists, or to submit a second one.
    """
    if response.status_code != 404 or response.age > 0:
        return False
    code = mapping_of(mapping_of(_json(response)).get("detail")).get("code")
    return isinstance(code, str) and bool(code.strip())


def is_web_page(response: HttpResponse) -> bool:
    """Tell whether a response is a page for people, such as the login page of a proxy."""
    return response.body.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"<"


def mapping_of(value: object) -> Mapping[str, Any]:
    """Return a JSON object as it is, and anything else as an empty one."""
    return value if is_mapping(value) else {}


def list_of(value: object) -> Sequence[Any]:
    """Return a JSON list as it is, and anything else as an empty one."""
    return value if is_list(value) else ()


def _json(response: HttpResponse) -> object:
    """Parse the body of an error, of which only the beginning was read if it is long."""
    try:
        value = bounded_json.parse(response.body, response.memory, partial=response.truncated)
    except (ValueError, bounded_json.TooMuchMemoryError):
        return None
    return response.masked(value)


def _server_words(response: HttpResponse) -> tuple[str | None, str | None]:
    """Return the server's code and message, in whichever of its forms they came."""
    said_all = _json(response)
    if not is_mapping(said_all):
        return None, one_line(response.excerpt()) or None
    detail: object = said_all.get("detail") or said_all.get("error") or said_all
    if isinstance(detail, str):
        detail = {"code": said_all.get("code"), "message": detail}
    failures = "; ".join(_validation_error(entry) for entry in list_of(detail)[:5])
    fields = mapping_of(detail)
    said = failures or fields.get("message")
    return _code(fields.get("code")), one_line(said if isinstance(said, str) else _as_text(detail)) or None


def _validation_error(entry: object) -> str:
    """Show one entry of FastAPI's list of validation errors."""
    fields = mapping_of(entry)
    if not fields:
        return _as_text(entry)
    where = ".".join(_as_text(part) for part in list_of(fields.get("loc"))[:20])
    return f"{where}: {_as_text(fields.get('msg'))}" if where else _as_text(fields.get("msg"))


def _code(code: object) -> str | None:
    return one_line(code, 100).upper() or None if isinstance(code, str) else None


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(shortened(value, 4 * LINE_LENGTH), ensure_ascii=False)


def job_error(value: object) -> str | None:
    """Return why a job failed, whether it came as text or as an object: the original words, cut."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return _kept(value)
    fields = mapping_of(value)
    code, said = _code(fields.get("code")), fields.get("message")
    if not isinstance(said, str):
        return without_keys(json.dumps(shortened(value, TEXT_LENGTH), ensure_ascii=False))
    return f"{code}: {_kept(said)}" if code else _kept(said)


def _kept(text: str) -> str:
    kept = without_keys(text[:TEXT_LENGTH])
    return kept + "…" if len(text) > TEXT_LENGTH else kept
