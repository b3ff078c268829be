"""One Airflow for this suite, with a local Noukai and a network to it that can be cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e_airflow.conftest import PROMPT
from tests.faults import scale
from tests.faults.airflow.crowd import CrowdedAirflow
from tests.faults.kinds import REQUEST_SECONDS
from tests.faults.network import Network
from tests.faults.noukai import NoukaiProcess

KEY = "nk_test_faultsaf_0123456789abcdef0123456789abcdef"

LONG_RETRY_SECONDS = 300.0 if scale.FULL else 20.0
"""The retry window of the connection `noukai_long_retry`; 300 is the default."""

CUT_SECONDS = 0.4 * LONG_RETRY_SECONDS
"""How long the network is cut: two minutes with the default."""

SHORT_RETRY_SECONDS = 4.0


@pytest.fixture(scope="session")
def network(noukai_process: NoukaiProcess) -> Iterator[Network]:
    """The network to the local Noukai."""
    with Network(noukai_process.port) as network:
        yield network


@pytest.fixture(scope="session")
def airflow(
    noukai_process: NoukaiProcess, network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CrowdedAirflow]:
    """A running Airflow. All connections but `noukai_direct` use the network."""
    extra = {"request_timeout": REQUEST_SECONDS, "max_polls_per_second": 200}
    over_network = {
        "conn_type": "noukai",
        "password": KEY,
        "host": f"http://127.0.0.1:{network.port}/api/v1",
        "extra": extra,
    }
    connections = {
        "noukai_default": over_network,
        "noukai_direct": {**over_network, "host": noukai_process.base_url},
        "noukai_long_retry": {**over_network, "extra": {**extra, "retry_timeout": LONG_RETRY_SECONDS}},
        "noukai_short_retry": {**over_network, "extra": {**extra, "retry_timeout": SHORT_RETRY_SECONDS}},
    }
    settings = {
        **PROMPT,
        "AIRFLOW__TRIGGERER__CAPACITY": "2000",
        "AIRFLOW__TRIGGERER__MAX_TRIGGER_TO_SELECT_PER_LOOP": "1000",
    }
    with CrowdedAirflow(tmp_path_factory.mktemp("airflow"), connections, settings) as running:
        yield running
