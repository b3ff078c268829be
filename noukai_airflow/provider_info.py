"""What Airflow reads about this provider at start-up: plain data, which is cheap to import."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

# Airflow compares it with the name of the installed distribution, and does not start if they differ.
_DISTRIBUTION = "noukai-orchestration"


def _version() -> str:
    try:
        return version(_DISTRIBUTION)
    except PackageNotFoundError:
        return "0"


def _modules(component: str) -> list[dict[str, Any]]:
    return [{"integration-name": "Noukai", "python-modules": [f"noukai_airflow.{component}.noukai"]}]


def _text_field(label: str, description: str) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["string", "null"]}}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata in the form of Airflow's `provider_info.schema.json`."""
    return {
        "package-name": _DISTRIBUTION,
        "name": "Noukai",
        "description": "Run Noukai jobs (hosted LLM flows) as Airflow tasks.",
        "versions": [_version()],
        "integrations": [
            {
                "integration-name": "Noukai",
                "external-doc-url": "https://docs.noukai.xyz",
                "tags": ["service"],
            }
        ],
        "hooks": _modules("hooks"),
        "operators": _modules("operators"),
        "sensors": _modules("sensors"),
        "triggers": _modules("triggers"),
        "extra-links": ["noukai_airflow.links.noukai.NoukaiJobLink"],
        "task-decorators": [{"name": "noukai", "class-name": "noukai_airflow.decorators.noukai.noukai_task"}],
        "connection-types": [connection_type()],
    }


def connection_type() -> dict[str, Any]:
    """Return the metadata of the connection type and its form."""
    return {
        "connection-type": "noukai",
        "hook-class-name": "noukai_airflow.hooks.noukai.NoukaiHook",
        "hook-name": "Noukai",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "login", "port", "extra"],
            "relabeling": {"password": "API key", "host": "Base URL (optional)"},
            "placeholders": {"password": "nk_live_…", "host": "https://api.noukai.dev/api/v1"},
        },
        "conn-fields": {
            "org": _text_field(
                "Organisation", "Optional. With a project, tasks can name a flow by its slug alone."
            ),
            "project": _text_field("Project", "Optional. The project within the organisation."),
            "run_url_template": _text_field(
                "Run page URL template",
                "Optional. The address of a job's page; {org}, {project}, {flow} and {job_id} are filled in. "
                "Without it, tasks show no link.",
            ),
        },
    }
