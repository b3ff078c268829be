"""After everything has happened with a marked key, it is in the connections and nowhere else.

Each search also expects a text that is in the message of every job, which shows that the search works.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx

from tests.e2e_airflow.conftest import AIRFLOW
from tests.secrets.airflow.conftest import BAD_CONNECTIONS, DAG, KILLED, NOTIFIES_TRIGGERS, OUTCOMES
from tests.secrets.places import Place, cells, files, pages

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.secrets.airflow.conftest import Evidence

# Airflow 3.4 keeps them for each try.
OF_TASKS = (
    ("rendered_task_instance_fields.rendered_fields", "xcom.value")
    if AIRFLOW < (3, 4)
    else ("rtif_v2.rendered_fields", "xcom_v2.value")
)
MESSAGES = {
    "dag_run.conf",
    "log.extra",
    "serialized_dag.data",
    "task_instance.next_kwargs",
    "trigger.kwargs",
    *OF_TASKS,
    *(("task_state_store.value",) if NOTIFIES_TRIGGERS else ()),
}
FAILED = {task for task, state in OUTCOMES.items() if state == "failed"}


def test_everything_has_happened(evidence: Evidence, emulator_server: Emulator) -> None:
    """Each scenario has ended as intended."""
    assert evidence.states == OUTCOMES
    met = {fault["kind"]: fault["met"] for fault in emulator_server.control.faults()}
    assert set(met) == {"status", "expired_key", "redirect"}
    assert min(met.values()) > 0


def test_database(evidence: Evidence) -> None:
    """Only the cells of connections hold the key, even where cells are encrypted."""
    found = [*evidence.deferred, *cells(evidence.database, evidence.fernet)]
    assert evidence.sign.among(found) >= MESSAGES
    assert evidence.secret.among(found) == {"connection.password"}


def test_what_the_database_has_deleted(evidence: Evidence) -> None:
    """The key is in no page of the database's files, not even in unused ones."""
    found = list(pages(evidence.database))
    assert len(evidence.sign.among(found)) >= 1
    assert evidence.secret.among(found) == set()


def test_logs_and_error_reports(evidence: Evidence) -> None:
    """No log, no error report with local variables and no other file of Airflow shows the key."""
    found = list(files(evidence.airflow.home, only=lambda file: not file.name.startswith("airflow.db")))
    written = {name for name, data in found if data}
    assert written >= {f"{component}.log" for component in evidence.airflow.components}
    signed = evidence.sign.among(found)
    logged = {name.split("task_id=")[1].split("/")[0] for name in signed if "task_id=" in name}
    assert logged >= set(OUTCOMES) - {*BAD_CONNECTIONS, "sensed", "sensed_deferred"}
    # Airflow may not report the error of a task that a user has ended: it kills the process after 5 seconds.
    assert signed >= {f"frames/{task}.txt" for task in FAILED - {*KILLED}}
    assert "dags-test.log" in signed
    assert evidence.secret.among(found) == set()


def test_api(evidence: Evidence) -> None:
    """No response of the API shows the key: no connection, task, XCom or log, nor the audit log."""
    found = list(api_responses(evidence))
    kinds = {place.split("?")[0].rsplit("/", 1)[-1] for place in evidence.sign.among(found)}
    assert kinds >= {"deferred_completed", "return_value", "1", "eventLogs", "links"}
    assert all(name.encode() in dict(found)["/connections"] for name in evidence.tests_of_connections)
    assert evidence.secret.among(found) == set()


def api_responses(evidence: Evidence) -> list[Place]:
    """Return the responses that the web page reads."""
    run = f"/dags/{DAG}/dagRuns/{quote(evidence.run_id)}"
    paths = ["/connections", "/eventLogs?limit=1000"]
    paths += [f"/connections/{name}" for name in evidence.tests_of_connections]
    paths += [f"{run}/taskInstances", *(f"{run}/taskInstances/{task}" for task in OUTCOMES)]
    for task in OUTCOMES:
        of_task = f"{run}/taskInstances/{task}"
        paths += [f"{of_task}/links", f"{of_task}/logs/1"]
        keys = evidence.airflow.xcom_keys(DAG, evidence.run_id, task)
        paths += [f"{of_task}/xcomEntries/{key}" for key in keys]
    return [(path, json.dumps(evidence.airflow.get(path)).encode()) for path in paths]


def test_tests_of_connections(evidence: Evidence) -> None:
    """The test of a connection says what is wrong, without the key."""
    works = {name for name, reported in evidence.tests_of_connections.items() if reported["status"]}
    assert works == {"noukai_default"}
    assert not evidence.secret.is_in(json.dumps(evidence.tests_of_connections).encode())


def test_processes(evidence: Evidence) -> None:
    """No process has the key in its arguments or in its environment."""
    assert evidence.sign.among(evidence.processes) == {"arguments", "environment"}
    assert evidence.secret.among(evidence.processes) == set()


def test_redirects(evidence: Evidence, emulator_server: Emulator) -> None:
    """The target of a redirect gets no request, and therefore no header."""
    redirected = [one for one in emulator_server.control.requests() if one["fault"] == "redirect"]
    assert {(one["kind"], one["status"]) for one in redirected} == {("submit", 302), ("poll", 307)}
    assert evidence.elsewhere.requests == []
    with httpx.Client(trust_env=False) as client:
        client.get(evidence.elsewhere.url, headers={"Authorization": f"Bearer {evidence.sign.text}"})
    assert [evidence.sign.is_in(request.encode()) for request in evidence.elsewhere.requests] == [True]
