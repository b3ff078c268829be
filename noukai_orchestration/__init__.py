"""The distribution `noukai-orchestration` under its own name. What it offers is in the packages beside it.

Airflow searches a provider for example DAGs in a module that is named after its distribution, and logs an
error if there is none (https://github.com/apache/airflow/issues/66305).
"""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("noukai-orchestration")
