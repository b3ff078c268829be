"""The content of a connection."""

from __future__ import annotations

from typing import Any

import pytest

from noukai_airflow._client_cache import new_client
from noukai_airflow._connection import ConnectionSettings
from noukai_airflow.exceptions import NoukaiPermanentException
from noukai_core import Noukai
from tests.airflow.conftest import KEY


def settings(extra: dict[str, Any] | None = None, **fields: Any) -> ConnectionSettings:
    arguments = {"password": KEY, "host": "https://noukai.test/api/v1"} | fields
    return ConnectionSettings.of("my_conn", extra=extra or {}, **arguments)


def test_every_field_reaches_the_client() -> None:
    """Key, address, org, project and options become the arguments of a client."""
    options = {
        "request_timeout": 5,
        "retry_timeout": "60",
        "max_polls_per_second": 10,
        "max_response_bytes": 1024,
        "max_followed_jobs": 20,
    }
    arguments = settings({"org": "acme", "project": "demo", **options}).client_arguments()
    Noukai(**arguments).close()
    assert arguments == {
        "api_key": KEY,
        "base_url": "https://noukai.test/api/v1",
        "org": "acme",
        "project": "demo",
        "timeout": 5.0,
        "retry_timeout": 60.0,
        "max_polls_per_second": 10.0,
        "max_response_bytes": 1024,
        "max_followed_jobs": 20,
        "allow_insecure_http": False,
    }


def test_empty_fields_count_as_absent() -> None:
    """A form saves empty texts, which count as absent."""
    empty = settings({"org": "", "project": None, "run_url_template": "", "retry_timeout": ""}, host="")
    assert (empty.base_url, empty.org, empty.project, empty.run_url_template, empty.options) == (
        "https://api.noukai.dev/api/v1",
        None,
        None,
        None,
        (),
    )


@pytest.mark.parametrize("password", [f" {KEY}", f"{KEY}\n"])
def test_white_space_around_a_key(password: str) -> None:
    """A key that was pasted with white space is refused, and the error names the field."""
    with pytest.raises(NoukaiPermanentException, match=r"password.*white space") as caught:
        settings(password=password)
    assert KEY not in str(caught.value)


def test_what_a_connection_does_not_name_is_production(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored connection means the same server in every process, whatever its environment says."""
    monkeypatch.setenv("NOUKAI_BASE_URL", "http://localhost:8080/api/v1")
    arguments = settings({}, host="").client_arguments()
    assert arguments["base_url"] == "https://api.noukai.dev/api/v1"


def test_settings_of_a_triggerer() -> None:
    """How much a triggerer reads, and whether plain HTTP is allowed, are extras; other values are refused."""
    read = settings({"max_poll_bytes": "5000", "allow_insecure_http": "true"})
    assert (read.max_poll_bytes, read.allow_insecure_http) == (5000, True)
    assert settings({}).max_poll_bytes == 1024 * 1024
    for extra in ({"max_poll_bytes": 0}, {"max_poll_bytes": True}, {"allow_insecure_http": "perhaps"}):
        with pytest.raises(NoukaiPermanentException, match=next(iter(extra))):
            settings(extra)


@pytest.mark.parametrize("host", ["http://127.0.0.1", "http://127.0.0.1:8091/api/v1", "", None])
def test_a_port_of_its_own(host: str | None) -> None:
    """A port in the field for ports, which is not read, is refused; one that the host has is not."""
    with pytest.raises(NoukaiPermanentException, match=r"'my_conn' has the port 8090.*into the host"):
        settings(host=host, port=8090)
    assert settings(host="http://127.0.0.1:8090/api/v1", port=8090).base_url == "http://127.0.0.1:8090/api/v1"
    assert settings(port=0) == settings(port=None)


@pytest.mark.parametrize("password", [None, ""])
def test_a_connection_without_a_key(password: str | None) -> None:
    """The error names the connection and the field."""
    with pytest.raises(NoukaiPermanentException, match=r"'my_conn' has no API key.*password"):
        settings(password=password)


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({"org": 7}, "org"),
        ({"run_url_template": "ftp://x/{job_id}"}, "run_url_template"),
        ({"run_url_template": "https://x/{nothing}"}, "run_url_template"),
        ({"run_url_template": "https://x/{job_id"}, "run_url_template"),
        ({"run_url_template": "https://x/{org:>300000000}"}, "run_url_template"),
        ({"run_url_template": "javascript:alert('{job_id}')"}, "run_url_template"),
        ({"retry_timeout": "soon"}, "retry_timeout"),
        ({"recovery_timeout": True}, "recovery_timeout"),
        ({"max_response_bytes": "inf"}, "max_response_bytes"),
        ({"max_response_bytes": "nan"}, "max_response_bytes"),
    ],
)
def test_a_malformed_field(extra: dict[str, Any], name: str) -> None:
    """The error names the connection and the malformed field."""
    with pytest.raises(NoukaiPermanentException, match=rf"'my_conn' has a malformed '{name}'"):
        settings(extra)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"extra": {"request_timeout": 0}}, "request_timeout"),
        ({"extra": {"max_followed_jobs": 0}}, "max_followed_jobs"),
        ({"password": "sk-of-another-service"}, "password"),
        ({"host": "https://noukai.test/api/v1?a=b"}, "host"),
    ],
)
def test_a_field_that_no_client_takes(fields: dict[str, Any], name: str) -> None:
    """The error names the field as the connection does, and not the argument of the client."""
    with pytest.raises(NoukaiPermanentException, match=f"'my_conn' is malformed: {name} "):
        new_client(settings(**fields))


@pytest.mark.parametrize("name", ["looks_per_second", "fault_patience", "max_answer_bytes", "retry_timout"])
def test_an_unknown_field(name: str) -> None:
    """The error names the connection, the field that does not exist, and those that do."""
    with pytest.raises(NoukaiPermanentException, match=rf"'my_conn' has the unknown field '{name}'.*org, "):
        settings({name: 5})


def test_the_page_of_a_job() -> None:
    """The template is filled in, and the id stays one segment of the URL."""
    made = settings({"run_url_template": "https://app.test/{org}/{project}/{flow}/runs/{job_id}"})
    assert made.run_url("acme/demo/flow", "job?1") == "https://app.test/acme/demo/flow/runs/job%3F1"
    assert settings().run_url("acme/demo/flow", "job-1") is None


def test_the_key_is_not_shown() -> None:
    """The text form of a connection does not show its key."""
    assert KEY not in repr(settings())


def test_equal_connections_share() -> None:
    """Tasks with equal settings can share a client."""
    assert len({settings(), settings(), settings({"org": "a1", "project": "b1"})}) == 2


@pytest.mark.parametrize(
    ("given", "allowed"),
    [(True, True), (False, False), ("TRUE", True), (" false ", False), ("", False), (None, False)],
)
def test_a_flag(given: object, allowed: bool) -> None:
    """A flag of the extra may come from JSON, or as text from a form."""
    assert settings({"allow_insecure_http": given}).allow_insecure_http is allowed


@pytest.mark.parametrize("host", ["api.noukai.dev", "127.0.0.1:8090/api/v1", "ftp://api.noukai.dev"])
def test_a_host_without_a_protocol(host: str) -> None:
    """The error names the field that was filled in, and shows a whole address."""
    with pytest.raises(NoukaiPermanentException, match=r"'my_conn' has a host that is no URL.*https://api\."):
        settings(host=host)


@pytest.mark.parametrize(
    ("fields", "given", "missing"),
    [
        ({"schema": "https"}, "a project (the schema", "an organisation (the login"),
        ({"login": "acme"}, "an organisation (the login", "a project (the schema"),
        ({"extra": {"org": "acme"}}, "an organisation (the login, or org in the extra)", "a project"),
    ],
)
def test_an_organisation_without_a_project(fields: dict[str, Any], given: str, missing: str) -> None:
    """One without the other is refused, and the error names both by the fields of the connection."""
    with pytest.raises(NoukaiPermanentException) as caught:
        settings(**fields)
    assert f"'my_conn' has {given}" in str(caught.value)
    assert f", but not {missing}" in str(caught.value)
