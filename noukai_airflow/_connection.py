"""The content of an Airflow connection of the type `noukai`."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from noukai_airflow.exceptions import NoukaiPermanentException
from noukai_core import InvalidInputError, RunUrlTemplate
from noukai_core.addresses import PRODUCTION_URL

DEFAULT_MAX_POLL_BYTES = 1024 * 1024

# The connection's name for an option of the client, and the client's name for it.
_OPTIONS = {
    "request_timeout": "timeout",
    "retry_timeout": "retry_timeout",
    "not_found_grace": "not_found_grace",
    "recovery_timeout": "recovery_timeout",
    "max_polls_per_second": "max_polls_per_second",
    "max_followed_jobs": "max_followed_jobs",
    "max_response_bytes": "max_response_bytes",
}
# What a connection calls the arguments of the client.
_NAMES = {argument: name for name, argument in _OPTIONS.items()} | {"api_key": "password", "base_url": "host"}
_WHOLE_NUMBERS = ("max_followed_jobs", "max_response_bytes")
EXTRA_FIELDS = ("org", "project", "run_url_template", "max_poll_bytes", "allow_insecure_http", *_OPTIONS)

_ORG = "an organisation (the login, or org in the extra)"
_PROJECT = "a project (the schema, or project in the extra)"


@dataclass(frozen=True)
class ConnectionSettings:
    """The content of a connection, validated as far as possible without a request.

    Equal settings can share a client.

    Attributes:
        conn_id: The id of the connection, for messages.
        api_key: The key.
        base_url: The address of the API.
        org: The organisation. With `project`, tasks can name a flow by its slug alone.
        project: The project.
        run_url_template: Makes the URL of a job's page.
        allow_insecure_http: Whether the key may be sent over plain HTTP to another machine.
        max_poll_bytes: How many bytes of a response a triggerer reads.
        options: Further arguments of the client.
    """

    conn_id: str
    api_key: str = field(repr=False)
    base_url: str = PRODUCTION_URL
    org: str | None = None
    project: str | None = None
    run_url_template: RunUrlTemplate | None = None
    allow_insecure_http: bool = False
    max_poll_bytes: int = DEFAULT_MAX_POLL_BYTES
    options: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(
        cls,
        conn_id: str,
        *,
        password: str | None,
        host: str | None,
        extra: Mapping[str, Any],
        login: str | None = None,
        schema: str | None = None,
        port: int | None = None,
    ) -> ConnectionSettings:
        """Read the fields of a connection.

        The organisation is its login, and the project its schema. Both may be in the extra instead, but
        Airflow treats what is there as a secret: it masks it in logs, and warns about short texts.

        Raises:
            NoukaiPermanentException: A field is missing, malformed or unknown.
        """
        if password and password != password.strip():
            raise NoukaiPermanentException(
                f"The password of the Airflow connection {conn_id!r} begins or ends with white space: store "
                "the API key without it."
            )
        if not password:
            raise NoukaiPermanentException(
                f"The Airflow connection {conn_id!r} has no API key: put one that begins with nk_ in its "
                "password field."
            )
        if port and _port_of(host) != port:
            raise NoukaiPermanentException(
                f"The Airflow connection {conn_id!r} has the port {port}, which is not read: write it into "
                "the host, as in http://127.0.0.1:8090/api/v1."
            )
        base_url = (host or "").strip() or PRODUCTION_URL
        if not base_url.lower().startswith(("https://", "http://")):
            raise NoukaiPermanentException(
                f"The Airflow connection {conn_id!r} has a host that is no URL: write it with https:// and "
                f"its path, as in {PRODUCTION_URL}, or leave it empty for Noukai's own address."
            )
        for name in extra:
            if name not in EXTRA_FIELDS:
                raise NoukaiPermanentException(
                    f"The Airflow connection {conn_id!r} has the unknown field {name!r} in its extra; "
                    f"the fields are {', '.join(EXTRA_FIELDS)}."
                )
        org = login or _text(extra, "org", conn_id)
        project = schema or _text(extra, "project", conn_id)
        if (org is None) != (project is None):
            given, missing = (_ORG, _PROJECT) if project is None else (_PROJECT, _ORG)
            raise NoukaiPermanentException(
                f"The Airflow connection {conn_id!r} has {given}, but not {missing}: set both, or neither."
            )
        return cls(
            conn_id=conn_id,
            api_key=password,
            base_url=base_url,
            org=org,
            project=project,
            run_url_template=_url_template(extra, conn_id),
            allow_insecure_http=_flag(extra, "allow_insecure_http", conn_id),
            max_poll_bytes=_bytes(extra, "max_poll_bytes", conn_id) or DEFAULT_MAX_POLL_BYTES,
            options=tuple(_options(extra, conn_id)),
        )

    def client_arguments(self) -> dict[str, Any]:
        """Return the arguments of a client for this connection."""
        return {
            "api_key": self.api_key,
            "base_url": self.base_url,
            "org": self.org,
            "project": self.project,
            "allow_insecure_http": self.allow_insecure_http,
            **dict(self.options),
        }

    @property
    def recovers_submissions(self) -> bool:
        """Whether the server may be asked for the job of a submission whose outcome is unknown."""
        return dict(self.options).get("recovery_timeout") != 0

    def run_url(self, flow_path: str, job_id: str) -> str | None:
        """Return the URL of a job's page, if the connection has a template for it."""
        return self.run_url_template.url(flow_path, job_id) if self.run_url_template else None


def _port_of(host: str | None) -> int | None:
    try:
        return urlsplit((host or "").strip()).port
    except ValueError:
        return None


def parse_extra(conn_id: str, extra: str | None) -> Mapping[str, Any]:
    """Read the extra of a connection.

    Raises:
        NoukaiPermanentException: It is not a JSON object.
    """
    try:
        fields: object = json.loads(extra) if extra else {}
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise NoukaiPermanentException(
            f"The Airflow connection {conn_id!r} has a malformed extra: it must be a JSON object."
        )
    return cast("dict[str, Any]", fields)


def _text(extra: Mapping[str, Any], name: str, conn_id: str) -> str | None:
    value = extra.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _malformed(conn_id, name, "text")
    return value


def _flag(extra: Mapping[str, Any], name: str, conn_id: str) -> bool:
    match extra.get(name):
        case None | "":
            return False
        case bool() as flag:
            return flag
        case str() as word if word.strip().lower() in ("true", "false"):
            return word.strip().lower() == "true"
        case _:
            raise _malformed(conn_id, name, "true or false")


def _bytes(extra: Mapping[str, Any], name: str, conn_id: str) -> int | None:
    value = extra.get(name)
    if value is None or value == "":
        return None
    try:
        number = 0 if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1:
        raise _malformed(conn_id, name, "a whole number of bytes above 0")
    return number


def _url_template(extra: Mapping[str, Any], conn_id: str) -> RunUrlTemplate | None:
    template = _text(extra, "run_url_template", conn_id)
    if template is None:
        return None
    try:
        return RunUrlTemplate(template)
    except InvalidInputError as error:
        raise NoukaiPermanentException(
            f"The Airflow connection {conn_id!r} has a malformed 'run_url_template' in its extra: {error}."
        ) from None


def _options(extra: Mapping[str, Any], conn_id: str) -> list[tuple[str, float]]:
    options: list[tuple[str, float]] = []
    for name, argument in _OPTIONS.items():
        value = extra.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, bool):
            raise _malformed(conn_id, name, "a number")
        try:
            number = int(float(value)) if argument in _WHOLE_NUMBERS else float(value)
        except (TypeError, ValueError, OverflowError):
            raise _malformed(conn_id, name, "a number") from None
        options.append((argument, number))
    return options


def _malformed(conn_id: str, name: str, allowed: str) -> NoukaiPermanentException:
    return NoukaiPermanentException(
        f"The Airflow connection {conn_id!r} has a malformed {name!r} in its extra: it must be {allowed}."
    )


def in_connection_terms(message: str) -> str:
    """Return a message of the client about one of its arguments with the connection's name for it."""
    argument, _, rest = message.partition(" ")
    return f"{_NAMES.get(argument, argument)} {rest}"


@contextmanager
def explained(conn_id: str) -> Generator[None, None, None]:
    """Say so when a connection cannot be read because its environment variable is malformed.

    Airflow ignores such a variable, and reports that the connection is not defined.
    """
    try:
        yield
    except Exception:
        variable = f"AIRFLOW_CONN_{conn_id}".upper()  # an id may be None, of which Airflow's error tells
        position = _invalid_json_at(variable)
        if position is None:
            raise
        raise NoukaiPermanentException(
            f"The Airflow connection {conn_id!r} is malformed: the variable {variable} is no valid JSON "
            f"({position})"
        ) from None


def _invalid_json_at(variable: str) -> str | None:
    """Return where the JSON of a variable is invalid. No frame that is left has the key in it then."""
    text = os.environ.get(variable, "").lstrip()
    if not text.startswith("{"):
        return None
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f"line {error.lineno}, column {error.colno}"
    return None
