"""The servers of a larger deployment, and one Airflow on them, with a local Noukai that has faults."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from tests.deployment.deployment import Deployment
from tests.deployment.servers import PostgreSQL, Redis
from tests.faults import kinds
from tests.faults.conftest import noukai, noukai_process, pytest_terminal_summary
from tests.faults.noukai import NoukaiProcess

__all__ = ["noukai", "noukai_process", "pytest_terminal_summary"]

KEY = "nk_test_deployed_0123456789abcdef0123456789abcdef"


def pytest_configure() -> None:
    """Stop the servers on SIGTERM as well as on Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def deployment(
    noukai_process: NoukaiProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A running Airflow with two schedulers, workers and triggerers, on a separate PostgreSQL and Redis."""
    folder = tmp_path_factory.mktemp("deployment")
    with (
        PostgreSQL(folder) as postgresql,
        Redis(folder) as redis,
        Deployment(folder / "airflow", postgresql, redis) as running,
    ):
        running.add_connection(
            "noukai_default",
            conn_type="noukai",
            password=KEY,
            host=noukai_process.base_url,
            extra=json.dumps({"request_timeout": kinds.REQUEST_SECONDS}),
        )
        yield running
