"""After everything that can happen to a job, its marked key is found in the blocks and nowhere else.

Each test also searches for a text from the message of every job. If that is not found, the search is broken.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import httpx
import pytest
from cryptography.fernet import Fernet

from tests.secrets.places import Place, cells, files, pages
from tests.secrets.prefect.conftest import ENDS, OUTCOMES

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.secrets.prefect.conftest import Evidence

MESSAGES = {
    "artifact.data",
    "artifact.metadata_",
    "artifact_collection.data",
    "events.payload",
    "events.resource",
    "flow_run.parameters",
    "flow_run_state.message",
    "log.message",
    "task_run_state.message",
}
FAILED = {name for name, end in OUTCOMES.items() if end != "completed"}


@pytest.fixture
def fernet(evidence: Evidence) -> Fernet:
    """The key with which Prefect encrypts blocks."""
    with closing(sqlite3.connect(evidence.database)) as database:
        query = "SELECT value FROM configuration WHERE key = 'ENCRYPTION_KEY'"
        (value,) = database.execute(query).fetchone()
    return Fernet(json.loads(value)["fernet_key"])


def test_everything_has_happened(evidence: Evidence, emulator_server: Emulator) -> None:
    """Each scenario ended as intended."""
    assert evidence.states == ENDS
    assert json.loads((evidence.prefect.home / "ends.json").read_text()) == OUTCOMES
    met = {fault["kind"]: fault["met"] for fault in emulator_server.control.faults()}
    assert set(met) == {"status", "expired_key", "redirect"}
    assert min(met.values()) > 0


def test_database(evidence: Evidence, fernet: Fernet) -> None:
    """No table contains the key except that of the blocks, which is encrypted."""
    found = list(cells(evidence.database, fernet))
    assert evidence.sign.among(found) >= MESSAGES
    assert evidence.secret.among(found) == {"block_document.data"}
    assert evidence.secret.among(cells(evidence.database, None)) == set()


def test_what_the_database_has_deleted(evidence: Evidence) -> None:
    """The database files do not contain the key, not even in unused pages."""
    found = list(pages(evidence.database))
    assert len(evidence.sign.among(found)) >= 1
    assert evidence.secret.among(found) == set()


def test_results_logs_and_error_reports(evidence: Evidence) -> None:
    """No file contains the key, including results, logs and error reports with local variables."""
    found = list(
        files(evidence.prefect.home, only=lambda file: not file.name.startswith(evidence.database.name))
    )
    assert {name for name, _ in found} >= {f"{component}.log" for component in evidence.prefect.components}
    signed = evidence.sign.among(found)
    # The outputs of a job and of a batch, what was triggered, an error, and all of it as a flow's result.
    assert len([name for name in signed if name.startswith("storage/")]) >= 5
    assert any(name.startswith("storage/parameters/") for name in signed)
    assert signed >= {f"frames/{name}.txt" for name in FAILED}
    assert any(name.startswith("serve-") for name in signed)
    assert evidence.secret.among(found) == set()


def test_api(evidence: Evidence) -> None:
    """The API returns the key only to requests for the secrets of blocks."""
    found = list(read_from_api(evidence))
    assert evidence.sign.among(found) == {"runs", "task runs", "artifacts", "logs", "events"}
    assert evidence.secret.among(found) == set()


def read_from_api(evidence: Evidence) -> list[Place]:
    """Read what the web page and other programs read."""
    prefect, found = evidence.prefect, list[tuple[str, object]]()
    for run in evidence.runs.values():
        found += [("runs", prefect.flow_run(run)), ("task runs", prefect.task_runs(run))]
        found += [("artifacts", prefect.artifacts(run)), ("logs", prefect.logs(run))]
    found += [("events", prefect.events(name)) for name in ("noukai.job.*", "prefect.block.*", "prefect.*")]
    found += [("blocks", prefect.block("noukai-credentials", name)) for name in ("default", "bad-key")]
    return [(name, json.dumps(reported).encode()) for name, reported in found]


def test_processes(evidence: Evidence) -> None:
    """No process had the key among its arguments or in its environment."""
    assert evidence.sign.among(evidence.processes) == {"arguments", "environment"}
    assert evidence.secret.among(evidence.processes) == set()


def test_redirects(evidence: Evidence, emulator_server: Emulator) -> None:
    """The target of redirects never receives a request, and so no header of one."""
    redirected = [one for one in emulator_server.control.requests() if one["fault"] == "redirect"]
    assert {(one["kind"], one["status"]) for one in redirected} >= {("submit", 302), ("poll", 307)}
    assert evidence.elsewhere.requests == []
    with httpx.Client(trust_env=False) as client:
        client.get(evidence.elsewhere.url, headers={"Authorization": f"Bearer {evidence.sign.text}"})
    assert [evidence.sign.is_in(request.encode()) for request in evidence.elsewhere.requests] == [True]
