"""The plugin that lets Airflow's API server cancel the job of a task that a user marks."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import AirflowPlugin

from noukai_airflow import _mark_listener


class NoukaiPlugin(AirflowPlugin):
    """Registers the listener for marked tasks and DAG runs."""

    name = "noukai"  # pyright: ignore[reportIncompatibleVariableOverride]
    listeners = [_mark_listener]  # noqa: RUF012
