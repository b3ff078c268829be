"""One Airflow for all runs of this suite, beside a local Noukai and a network to it that can be cut."""

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

PATIENCE_SECONDS = 300.0 if scale.FULL else 20.0
"""For how long the connection `noukai_patient` waits out that there is no answer; 300 is the default."""

CUT_SECONDS = 0.4 * PATIENCE_SECONDS
"""How long the network is cut: two minutes of the default's five."""

IMPATIENCE_SECONDS = 4.0


@pytest.fixture(scope="session")
def network(noukai_process: NoukaiProcess) -> Iterator[Network]:
    """The network to the local Noukai."""
    with Network(noukai_process.port) as network:
        yield network


@pytest.fixture(scope="session")
def airflow(
    noukai_process: NoukaiProcess, network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CrowdedAirflow]:
    """A running Airflow, whose connections but `noukai_direct` lead over the network."""
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
        "noukai_patient": {**over_network, "extra": {**extra, "retry_timeout": PATIENCE_SECONDS}},
        "noukai_impatient": {**over_network, "extra": {**extra, "retry_timeout": IMPATIENCE_SECONDS}},
    }
    settings = {
        **PROMPT,
        "AIRFLOW__TRIGGERER__CAPACITY": "2000",
        "AIRFLOW__TRIGGERER__MAX_TRIGGER_TO_SELECT_PER_LOOP": "1000",
    }
    with CrowdedAirflow(tmp_path_factory.mktemp("airflow"), connections, settings) as running:
        yield running
