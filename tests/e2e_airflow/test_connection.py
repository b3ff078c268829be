"""The connection, as a user meets it in Airflow's web page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e_airflow.conftest import KEY

if TYPE_CHECKING:
    from demo.airflow_server import LocalAirflow
    from noukai_core.emulator import Emulator


def press_test(airflow: LocalAirflow, **fields: Any) -> tuple[bool, str]:
    """Press the button that tests a connection."""
    answer = airflow.post(
        "/connections/test", {"connection_id": "of_a_test", "conn_type": "noukai", **fields}
    )
    return answer["status"], answer["message"]


def test_the_form(airflow: LocalAirflow) -> None:
    """The form has the fields of a Noukai connection under their own names, and no others."""
    (form,) = [
        hook
        for hook in airflow.web_page_data("/connections/hook_meta")
        if hook["connection_type"] == "noukai"
    ]
    standard = form["standard_fields"]
    assert standard["password"]["title"] == "API key"
    assert standard["host"]["title"] == "Base URL (optional)"
    assert {name for name, field in standard.items() if field and field.get("hidden")} == {
        "url_schema",
        "login",
        "port",
    }
    labels = {name: field["schema"]["title"] for name, field in form["extra_fields"].items()}
    assert labels == {
        "org": "Organisation",
        "project": "Project",
        "run_url_template": "Run page URL template",
    }


def test_a_connection_that_works(airflow: LocalAirflow, emulator_server: Emulator) -> None:
    """A good key is reported as such."""
    works, message = press_test(airflow, password=KEY, host=emulator_server.base_url)
    assert (works, message[:13]) == (True, "The key works")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "no API key"),
        ({"password": "wrong"}, "does not look like a Noukai key"),
        ({"password": KEY, "host": "not a url"}, "base_url"),
        ({"password": KEY, "extra": '{"org": "acme"}'}, "project is not"),
        ({"password": KEY, "extra": '{"run_url_template": "nowhere"}'}, "malformed 'run_url_template'"),
    ],
)
def test_a_connection_that_does_not(airflow: LocalAirflow, fields: dict[str, Any], reason: str) -> None:
    """What is missing or malformed is named, and the key is not shown."""
    works, message = press_test(airflow, **fields)
    assert not works
    assert reason in message
    assert KEY not in message
