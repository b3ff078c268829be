"""A paused DAG, whose task the suite writes into the database as deferred. Resumed tasks do not run."""

from __future__ import annotations

from airflow.sdk import DAG

from noukai_airflow.operators.noukai import NoukaiRunJobOperator

with DAG("waiting", schedule=None, is_paused_upon_creation=True):
    NoukaiRunJobOperator(task_id="job", flow="acme/faults/run", message="Hello", deferrable=True)
