"""The ways to define a connection in Airflow."""

from __future__ import annotations

import asyncio
import gc
import json
import traceback
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from noukai_airflow import _client_cache
from noukai_airflow.exceptions import NoukaiPermanentException
from noukai_airflow.hooks.noukai import NoukaiHook
from noukai_core import Noukai
from tests.airflow.conftest import KEY

if TYPE_CHECKING:
    from noukai_airflow._connection import ConnectionSettings
    from noukai_core.emulator import Emulator

HOST = "https://noukai.test/api/v1"
EXTRA = {"org": "acme", "project": "demo", "retry_timeout": 60}


def stored(**fields: str) -> SimpleNamespace:
    """A connection as Airflow returns it."""
    return SimpleNamespace(
        password=KEY, host=HOST, **{"port": None, "login": None, "schema": None, "extra": None} | fields
    )


AS_JSON = json.dumps({"conn_type": "noukai", "password": KEY, "host": HOST, "extra": EXTRA})
AS_URI = f"noukai://:{KEY}@{quote(HOST, safe='')}/?org=acme&project=demo&retry_timeout=60"


@pytest.fixture(params=[AS_JSON, AS_URI], ids=["JSON", "URI"])
def variable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection in an environment variable."""
    monkeypatch.setenv("AIRFLOW_CONN_OF_A_TEST", request.param)


@pytest.mark.usefixtures("variable")
async def test_a_connection_in_an_environment_variable() -> None:
    """A connection as JSON equals one as a URI, on a worker and in a triggerer."""
    settings = NoukaiHook("of_a_test").settings
    assert (settings.api_key, settings.base_url, settings.org, settings.project) == (
        KEY,
        HOST,
        "acme",
        "demo",
    )
    assert dict(settings.options) == {"retry_timeout": 60.0}
    assert await NoukaiHook("of_a_test").aget_settings() == settings


def test_the_organisation_and_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the login and the schema of the connection, whether it is JSON or a URI."""
    fields = {"conn_type": "noukai", "password": KEY, "login": "acme", "schema": "demo"}
    for text in (json.dumps(fields), f"noukai://acme:{KEY}@/demo"):
        monkeypatch.setenv("AIRFLOW_CONN_OF_A_TEST", text)
        settings = NoukaiHook("of_a_test").settings
        assert (settings.org, settings.project) == ("acme", "demo")


async def test_a_connection_that_is_missing() -> None:
    """The error names the connection."""
    from airflow.exceptions import AirflowNotFoundException

    with pytest.raises(AirflowNotFoundException, match="not_there"):
        _ = NoukaiHook("not_there").settings
    with pytest.raises(AirflowNotFoundException, match="not_there"):
        await NoukaiHook("not_there").aget_settings()


async def test_a_connection_without_an_id() -> None:
    """An id that a template has rendered to nothing leads to Airflow's own error."""
    from airflow.exceptions import AirflowNotFoundException

    nothing: Any = None
    with pytest.raises(AirflowNotFoundException, match="None"):
        _ = NoukaiHook(nothing).settings
    with pytest.raises(AirflowNotFoundException, match="None"):
        await NoukaiHook(nothing).aget_settings()


async def test_a_variable_that_is_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken variable, which Airflow passes over, is named, and its content is not shown."""
    monkeypatch.setenv("AIRFLOW_CONN_OF_A_TEST", AS_JSON[:-1] + ",")
    message = r"'of_a_test' is malformed: the variable AIRFLOW_CONN_OF_A_TEST is no valid JSON \(line 1, "
    with pytest.raises(NoukaiPermanentException, match=message) as caught:
        _ = NoukaiHook("of_a_test").settings
    shown = "".join(traceback.format_exception(caught.value))
    assert KEY not in shown
    with pytest.raises(NoukaiPermanentException, match=message):
        await NoukaiHook("of_a_test").aget_settings()


@pytest.mark.parametrize(
    "fields", [{"password": "sk-of-another-service"}, {"host": "https://noukai.test/api/v1?a=b"}]
)
async def test_a_connection_that_no_client_takes(
    fields: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the job client refuses is reported with the connection's name, and without the key."""
    connection = {"conn_type": "noukai", "password": KEY, **fields}
    monkeypatch.setenv("AIRFLOW_CONN_OF_A_TEST", json.dumps(connection))
    with pytest.raises(NoukaiPermanentException, match="connection 'of_a_test' is malformed") as caught:
        NoukaiHook("of_a_test").get_conn()
    assert "another-service" not in str(caught.value)
    with pytest.raises(NoukaiPermanentException, match="connection 'of_a_test' is malformed"):
        async with NoukaiHook("of_a_test").async_client():
            pass


async def test_a_connection_that_is_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the defect, and the next read sees a corrected connection."""
    monkeypatch.setenv("AIRFLOW_CONN_OF_A_TEST", json.dumps({"conn_type": "noukai"}))
    with pytest.raises(NoukaiPermanentException, match="'of_a_test' has no API key"):
        await NoukaiHook("of_a_test").aget_settings()
    monkeypatch.setenv("AIRFLOW_CONN_OF_A_TEST", AS_JSON)
    assert (await NoukaiHook("of_a_test").aget_settings()).api_key == KEY


@pytest.mark.parametrize("extra", ["[1]", '{"org": '])
def test_a_malformed_extra(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of an extra that is not a JSON object names the connection."""
    hook = NoukaiHook("of_a_test")
    monkeypatch.setattr(hook, "get_connection", lambda _: stored(extra=extra))
    with pytest.raises(NoukaiPermanentException, match="'of_a_test' has a malformed extra"):
        _ = hook.settings


def test_no_value_of_the_extra_is_masked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is read without `extra_dejson`, which would mask its values once more."""
    hook = NoukaiHook("of_a_test")
    connection = stored(extra=json.dumps(EXTRA))
    monkeypatch.setattr(hook, "get_connection", lambda _: connection)
    assert (hook.settings.org, dict(hook.settings.options)) == ("acme", {"retry_timeout": 60.0})


def test_no_loop_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed event loops do not stay in memory, nor do their connections."""
    monkeypatch.setenv("AIRFLOW_CONN_OF_A_TEST", AS_JSON)

    async def read_connection() -> weakref.ref[asyncio.AbstractEventLoop]:
        await NoukaiHook("of_a_test").aget_settings()
        return weakref.ref(asyncio.get_running_loop())

    loops = [asyncio.run(read_connection()) for _ in range(3)]
    gc.collect()
    assert [loop() for loop in loops[:-1]] == [None, None]


async def test_no_frame_shows_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback with local variables, as in error reports, shows no key of a malformed connection."""
    malformed = {"conn_type": "noukai", "password": KEY, "extra": {"retry_timeout": "long"}}
    monkeypatch.setenv("AIRFLOW_CONN_OF_A_TEST", json.dumps(malformed))
    with pytest.raises(NoukaiPermanentException) as blocking:
        _ = NoukaiHook("of_a_test").settings
    with pytest.raises(NoukaiPermanentException) as waiting:
        await NoukaiHook("of_a_test").aget_settings()
    for error in (blocking.value, waiting.value):
        stack = traceback.TracebackException.from_exception(error, capture_locals=True).stack
        shown = "".join(str(frame.locals) for frame in stack if "noukai_airflow" in frame.filename)
        assert "password" in shown
        assert KEY not in shown


def test_the_button_of_the_form(
    settings: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of a connection says for what the key works, or what the server said, and submits nothing."""
    monkeypatch.setattr(NoukaiHook, "settings", settings)
    works, message = NoukaiHook().test_connection()
    assert (works, message[:13]) == (True, "The key works")
    emulator.control.fault("status", on="verify", status=401)
    works, message = NoukaiHook().test_connection()
    assert not works
    assert "401" in message
    assert KEY not in message
    assert emulator.control.jobs() == []


@pytest.mark.parametrize("status", [None, 401])
def test_the_button_keeps_no_client(
    settings: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    """A test of a connection, for which Airflow makes up an id, leaves no client behind, nor an open one."""
    made: list[Noukai] = []
    make = Noukai.__init__

    def record(client: Noukai, *arguments: Any, **options: Any) -> None:
        make(client, *arguments, **options)
        made.append(client)

    monkeypatch.setattr(Noukai, "__init__", record)
    monkeypatch.setattr(NoukaiHook, "settings", replace(settings, conn_id="made_up"))
    if status is not None:
        emulator.control.fault("status", on="verify", status=status)
    assert NoukaiHook("made_up").test_connection()[0] is (status is None)
    assert [client.is_closed for client in made] == [True]
    assert all(kept.conn_id != "made_up" for kept in _client_cache._clients)


def test_a_shared_client_that_is_closed(
    settings: ConnectionSettings, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who uses the client in a `with` block, as one does with clients, leaves later users a new one."""
    monkeypatch.setattr(NoukaiHook, "settings", settings)
    for _ in range(2):
        with NoukaiHook().get_conn() as client:
            assert client.verify_key()
        assert client.is_closed
    assert not NoukaiHook().get_conn().is_closed


def test_the_labels_of_the_form_before_airflow_3_2() -> None:
    """The form of an older Airflow has the labels of the newer one's, under the names that it reads."""
    behaviour = NoukaiHook.get_ui_field_behaviour()
    assert {"hidden_fields", "relabeling"} <= set(behaviour)
    assert behaviour["relabeling"]["password"]
