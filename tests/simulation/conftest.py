"""Airflow reads its configuration, and writes it, when it is first imported: before any test."""

from tests.simulation import airflow_home  # noqa: F401
