"""The metadata that Airflow reads about the provider."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import distribution, entry_points
from importlib.resources import files
from pathlib import Path

import jsonschema

from noukai_airflow import exceptions
from noukai_airflow._client_cache import new_client
from noukai_airflow._connection import EXTRA_FIELDS, ConnectionSettings
from noukai_airflow.provider_info import get_provider_info
from tests.airflow.conftest import KEY


def test_it_is_valid_against_airflows_schema() -> None:
    """Airflow does not start with an invalid provider."""
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_the_package_name_is_that_of_the_distribution() -> None:
    """Airflow does not start if the two differ."""
    (entry,) = [
        e for e in entry_points(group="apache_airflow_provider") if e.value.startswith("noukai_airflow")
    ]
    assert entry.load()()["package-name"] == distribution("noukai-orchestration").name


def test_everything_named_can_be_imported() -> None:
    """Every module and class in the metadata exists."""
    info = get_provider_info()
    for component in ("hooks", "operators", "sensors", "triggers"):
        for module in info[component][0]["python-modules"]:
            importlib.import_module(module)
    paths = [
        *info["extra-links"],
        *(decorator["class-name"] for decorator in info["task-decorators"]),
        *(connection["hook-class-name"] for connection in info["connection-types"]),
    ]
    for path in paths:
        module, name = path.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), name), path


def test_the_form_has_every_field_of_the_extra() -> None:
    """Each field that a connection may have in its extra is in the form.

    The organisation and the project are the login and the schema there.
    """
    fields = get_provider_info()["connection-types"][0]["conn-fields"]
    assert set(fields) == set(EXTRA_FIELDS) - {"org", "project"}


def test_a_form_that_is_left_empty() -> None:
    """What the form saves for empty fields is as good as no extra."""
    fields = get_provider_info()["connection-types"][0]["conn-fields"]
    saved = {name: field["schema"].get("default") for name, field in fields.items()}
    assert ConnectionSettings.of("of_the_form", password=KEY, host=None, extra=saved) == (
        ConnectionSettings.of("of_the_form", password=KEY, host=None, extra={})
    )


def test_numbers_and_flags_are_no_text() -> None:
    """The form saves them as what they are: Airflow would mask their text in every log."""
    fields = get_provider_info()["connection-types"][0]["conn-fields"]
    kinds = {name: field["schema"]["type"][0] for name, field in fields.items()}
    assert [name for name, kind in kinds.items() if kind == "string"] == ["run_url_template"]
    saved = {
        name: {"number": 2.5, "integer": 7, "boolean": True}[kind]
        for name, kind in kinds.items()
        if kind != "string"
    }
    settings = ConnectionSettings.of("of_the_form", password=KEY, host=None, extra=saved)
    assert (settings.allow_insecure_http, settings.max_poll_bytes) == (True, 7)
    assert set(dict(settings.options).values()) == {2.5, 7}


def test_the_least_number_that_the_form_takes() -> None:
    """The form takes no number that the connection refuses."""
    fields = get_provider_info()["connection-types"][0]["conn-fields"]
    least = {name: field["schema"].get("minimum") for name, field in fields.items()}
    for name, number in least.items():
        saved = ConnectionSettings.of("of_the_form", password=KEY, host=None, extra={name: number})
        new_client(saved).close()
    assert least["recovery_timeout"] == 0  # turns the recovery off


def test_airflow_finds_a_module_for_the_distribution() -> None:
    """While Airflow searches every provider for example DAGs, it logs no error about this one."""
    program = (
        "from airflow.dag_processing.bundles.manager import DagBundlesManager; "
        "print(*[bundle.name for bundle in DagBundlesManager().get_all_dag_bundles()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"AIRFLOW__CORE__LOAD_EXAMPLES": "True"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "example" in done.stdout
    assert "noukai_orchestration" not in done.stdout + done.stderr


def test_it_is_cheap_to_read() -> None:
    """Every Airflow process reads it at start-up, so it imports neither Airflow nor the client."""
    program = (
        "import sys; from noukai_airflow.provider_info import get_provider_info; get_provider_info(); "
        "print([m for m in ('airflow', 'httpx', 'pydantic', 'noukai_core') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_plugin_is_one_that_airflow_takes() -> None:
    """Airflow finds the plugin by its entry point, and registers its listener."""
    from airflow.listeners.listener import get_listener_manager

    (entry,) = [e for e in entry_points(group="airflow.plugins") if e.value.startswith("noukai_airflow")]
    plugin = entry.load()
    manager = get_listener_manager()
    assert all(listener in manager.pm.get_plugins() for listener in plugin.listeners)


def test_every_exception_is_explained() -> None:
    """The page on troubleshooting says of each exception of the provider what to do."""
    page = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    own = [
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and value.__module__ == exceptions.__name__ and name.endswith("Exception")
    ]
    assert "NoukaiBatchFailedException" in own
    assert [name for name in own if f"`{name}`" not in page] == []
