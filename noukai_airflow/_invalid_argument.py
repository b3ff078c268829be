"""The exception for an argument of an operator that is wrong. On its own, since it loads the job client."""

from __future__ import annotations

from noukai_airflow.exceptions import NoukaiPermanentException
from noukai_core import InvalidInputError


class InvalidArgumentError(NoukaiPermanentException, InvalidInputError):
    """An argument is wrong: an `InvalidInputError` for whoever wrote the DAG, and permanent for Airflow."""
