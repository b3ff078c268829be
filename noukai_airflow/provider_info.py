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


def _modules(component: str, *names: str) -> list[dict[str, Any]]:
    modules = [f"noukai_airflow.{component}.{name}" for name in ("noukai", *names)]
    return [{"integration-name": "Noukai", "python-modules": modules}]


def _text(label: str, description: str) -> dict[str, Any]:
    # Without a default, the form saves null for a field that is left empty.
    return {"label": label, "description": description, "schema": {"type": ["string", "null"], "default": ""}}


# A text would be masked as a secret in every log; so numbers and flags are saved as what they are. Of the
# limits of a number, the form knows only `minimum` and `maximum`, both inclusive.
def _number(label: str, description: str, *, kind: str = "number", minimum: int = 0) -> dict[str, Any]:
    schema = {"type": [kind, "null"], "minimum": minimum}
    return {"label": label, "description": description, "schema": schema}


def _flag(label: str, description: str) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["boolean", "null"]}}


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
        "operators": _modules("operators", "batch"),
        "sensors": _modules("sensors"),
        "triggers": _modules("triggers", "batch", "runs"),
        "extra-links": ["noukai_airflow.links.noukai.NoukaiJobLink"],
        "task-decorators": [
            {"name": "noukai", "class-name": "noukai_airflow.decorators.noukai.noukai_task"},
            {
                "name": "noukai_jobs",
                "class-name": "noukai_airflow.decorators.batch.noukai_jobs_task",
            },
        ],
        "connection-types": [connection_type()],
    }


def connection_type() -> dict[str, Any]:
    """Return the metadata of the connection type and its form."""
    return {
        "connection-type": "noukai",
        "hook-class-name": "noukai_airflow.hooks.noukai.NoukaiHook",
        "hook-name": "Noukai",
        "ui-field-behaviour": {
            "hidden-fields": ["port", "extra"],
            "relabeling": {
                "password": "API key",
                "host": "Base URL (optional)",
                "login": "Organisation (optional)",
                "schema": "Project (optional)",
            },
            "placeholders": {
                "password": "nk_live_…",
                "host": "https://api.noukai.dev/api/v1",
                "login": "Tasks can then name a flow by its slug alone",
                "schema": "The project within the organisation",
            },
        },
        "conn-fields": {
            "run_url_template": _text(
                "Run page URL template",
                "Optional. The address of a job's page; {org}, {project}, {flow} and {job_id} are filled in. "
                "Without it, tasks show no link.",
            ),
            "request_timeout": _number(
                "Request timeout", "Optional. Seconds for one request. Default: 30.", minimum=1
            ),
            "retry_timeout": _number(
                "Retry timeout",
                "Optional. Seconds for which transient errors are retried. Default: 300.",
            ),
            "recovery_timeout": _number(
                "Recovery timeout",
                "Optional. Seconds to find out whether a submission with an unknown outcome created a job; 0 "
                "turns this off. Default: 60.",
            ),
            "not_found_grace": _number(
                "Not-found grace period",
                "Optional. Seconds after a submission in which the server may not know the job. Default: 60.",
            ),
            "max_polls_per_second": _number(
                "Polls per second",
                "Optional. The rate limit of all jobs in one process. Default: 50.",
                minimum=1,
            ),
            "max_followed_jobs": _number(
                "Followed jobs",
                "Optional. The most jobs whose steps one process follows. Default: 50.",
                kind="integer",
                minimum=1,
            ),
            "max_response_bytes": _number(
                "Response size limit",
                "Optional. The largest response, in bytes. Default: 67108864.",
                kind="integer",
                minimum=1,
            ),
            "max_poll_bytes": _number(
                "Poll size limit",
                "Optional. How many bytes of a response a triggerer reads; the worker fetches the result. "
                "Default: 1048576.",
                kind="integer",
                minimum=1,
            ),
            "allow_insecure_http": _flag(
                "Allow plain HTTP",
                "Optional. Sends the key over http to another machine, where it can be read on the way.",
            ),
        },
    }
