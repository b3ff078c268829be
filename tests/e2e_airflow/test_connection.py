"""The connection as users edit it in Airflow's web page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from noukai_airflow.provider_info import connection_type
from tests.core.raw_service import http
from tests.e2e_airflow.conftest import AIRFLOW, KEY
from tests.fuzz.raw_server import RawServer

if TYPE_CHECKING:
    from devtools.airflow_server import LocalAirflow
    from noukai_core.emulator import Emulator
    from tests.e2e_airflow.conftest import Run, Runs

COMPLETED = http(200, {"status": "completed", "result": "moved"})


def press_test(airflow: LocalAirflow, **fields: Any) -> tuple[bool, str]:
    """Test a connection as the button in the form does."""
    response = airflow.post(
        "/connections/test", {"connection_id": "of_a_test", "conn_type": "noukai", **fields}
    )
    return response["status"], response["message"]


def test_the_form(airflow: LocalAirflow) -> None:
    """The form has only the fields of a Noukai connection, with their own labels."""
    (form,) = [
        hook
        for hook in airflow.web_page_data("/connections/hook_meta")
        if hook["connection_type"] == "noukai"
    ]
    standard = form["standard_fields"]
    assert standard["password"]["title"] == "API key"
    assert standard["host"]["title"] == "Base URL (optional)"
    assert standard["login"]["title"] == "Organisation (optional)"
    assert standard["url_schema"]["title"] == "Project (optional)"
    assert {name for name, field in standard.items() if field and field.get("hidden")} == {"port"}
    labels = {name: field["schema"]["title"] for name, field in form["extra_fields"].items()}
    assert labels == {name: field["label"] for name, field in connection_type()["conn-fields"].items()}
    # The form saves the value of each field. Airflow 3.1 makes every value a null.
    values = {name: field["value"] for name, field in form["extra_fields"].items()}
    assert values.pop("run_url_template") == ("" if AIRFLOW >= (3, 3) else None)
    assert set(values.values()) == {None}
    kinds = {name: field["schema"]["type"][0] for name, field in form["extra_fields"].items()}
    assert kinds["allow_insecure_http"] == "boolean"
    assert kinds["max_poll_bytes"] == "integer"


def test_a_connection_that_works(airflow: LocalAirflow, emulator_server: Emulator) -> None:
    """A valid key is reported as such."""
    works, message = press_test(airflow, password=KEY, host=emulator_server.base_url)
    assert (works, message[:13]) == (True, "The key works")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "no API key"),
        ({"password": "wrong"}, "does not look like a Noukai key"),
        ({"password": KEY, "host": "not a url"}, "a host that is no URL"),
        ({"password": KEY, "extra": '{"org": "acme"}'}, "but not a project"),
        ({"password": KEY, "extra": '{"run_url_template": "nowhere"}'}, "malformed 'run_url_template'"),
        ({"password": KEY, "extra": '{"retry_timout": 3}'}, "the unknown field 'retry_timout'"),
    ],
)
def test_a_connection_that_does_not(airflow: LocalAirflow, fields: dict[str, Any], reason: str) -> None:
    """The message names what is missing or malformed, and does not show the key."""
    works, message = press_test(airflow, **fields)
    assert not works
    assert reason in message
    assert KEY not in message


def _job_over_stored_connection(airflow: LocalAirflow, run: Run, emulator_server: Emulator) -> dict[str, Any]:
    """Return the job of a deferred task whose connection is stored, as the web page does it."""
    airflow.add_connection(
        run.flow,
        conn_type="noukai",
        password=KEY,
        host=emulator_server.base_url,
        login="acme",
        schema="tests",
    )
    run.start().wait_until_watched()
    job = run.job()
    run.wait_for_polls(job["id"])
    return job


def test_a_connection_of_the_web_page(airflow: LocalAirflow, runs: Runs, emulator_server: Emulator) -> None:
    """A task uses a stored connection, and while it is deferred, the key that replaces a rejected one."""
    run = runs.prepare("of_the_form", outcome="never")
    job = _job_over_stored_connection(airflow, run, emulator_server)
    assert job["flow"] == f"acme/tests/{run.flow}"
    airflow.change_connection(run.flow, conn_type="noukai", password=KEY.replace("e2e", "new"))
    run.control.fault("status", on="poll", times=1, flow=run.flow, status=401)
    run.wait_until_said("connection changed (polling continues)")
    run.control.finish(job["id"], result={"whole": True})
    assert run.wait_for() == "success"
    assert (run.xcom(), run.submissions(), run.cancels(job["id"])) == ({"whole": True}, 1, 0)
    assert not run.said("Skipping masking for a secret")


def test_a_change_without_a_rejection(airflow: LocalAirflow, runs: Runs, emulator_server: Emulator) -> None:
    """A deferred task goes on with the new server and key although the old server rejects nothing."""
    run = runs.prepare("of_the_form", outcome="never")
    job = _job_over_stored_connection(airflow, run, emulator_server)
    new_key, received = KEY.replace("e2e", "new"), list[bytes]()

    def respond(request: bytes) -> list[bytes]:
        received.append(request)
        return [COMPLETED]

    with RawServer(respond) as moved:
        airflow.change_connection(run.flow, conn_type="noukai", password=new_key, host=moved.base_url)
        run.wait_until_said("connection changed (polling continues)")
        assert run.wait_for() == "success"
    assert (run.xcom(), run.submissions(), run.cancels(job["id"])) == ("moved", 1, 0)
    assert received
    for request in received:
        assert f"/jobs/{job['id']}".encode() in request
        assert new_key.encode() in request
        assert KEY.encode() not in request
    assert not run.said("API key")
