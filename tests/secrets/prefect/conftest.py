"""One real Prefect, on which jobs with a marked key went through everything that can happen to a job."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devtools.prefect_server import LocalPrefect
from devtools.processes import wait_until
from tests.e2e_prefect.conftest import entrypoints
from tests.secrets.marks import Mark, marked_key
from tests.secrets.places import Place, Processes
from tests.secrets.strangers import Echo, Stranger

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator, EmulatorControl

ROOT = Path(__file__).parents[3]

# The final state of each flow run.
ENDS = {
    "everything": "Completed",
    "failing": "Failed",
    "cancelled": "Cancelled",
    "killed": "Crashed",
    "kept": "Completed",
    "form": "Completed",
}

# The outcome of each job of the flow `everything`.
OUTCOMES = {
    **dict.fromkeys(("completed", "web_page_later", "echo_completed"), "completed"),
    **dict.fromkeys(("in_two_steps", "by_block", "batch"), "completed"),
    **dict.fromkeys(("failed", "echo_failed"), "JobFailedError"),
    "cancelled": "JobCancelledError",
    **dict.fromkeys(("refused_key", "refused_key_later"), "AuthenticationError"),
    "refused_model_key": "ModelKeyRejectedError",
    "redirected": "RedirectError",
    **dict.fromkeys(("redirected_later", "deadline"), "JobTimeoutError"),
    **dict.fromkeys(("bad_key", "bad_org"), "InvalidInputError"),
    "echo_refused": "BadRequestError",
    **dict.fromkeys(("batch_failed", "batch_refused", "batch_echo_failed"), "ExceptionGroup"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Apply the usual timeout to each test alone, without the fixture that the first one waits for."""
    for item in items:
        item.add_marker(pytest.mark.timeout(120, func_only=True))


@dataclass
class Evidence:
    """The traces that the runs left.

    Attributes:
        prefect: Prefect, which is still running.
        secret: The mark of the key.
        sign: A mark in all messages, which must be found where messages go.
        elsewhere: The server that the redirects led to.
        runs: The id of each flow run.
        states: The state of each flow run.
        processes: The arguments and environments of all processes.
    """

    prefect: LocalPrefect
    secret: Mark
    sign: Mark
    elsewhere: Stranger
    runs: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    processes: set[Place] = field(default_factory=set)

    @property
    def database(self) -> Path:
        """The database of Prefect's server."""
        return self.prefect.home / "prefect.db"


@pytest.fixture(scope="session")
def evidence(emulator_server: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    """The evidence after all runs have ended."""
    key, secret = marked_key()
    sign = Mark("seen1where2messages3should4go5")
    prefect = LocalPrefect(
        Path(sys.executable).parent,
        tmp_path_factory.mktemp("prefect"),
        environment={
            "PYTHONPATH": str(ROOT),
            "SECRETS_SIGN": sign.text,
            "PREFECT_RESULTS_DEFAULT_SERIALIZER": "pickle",
            "PREFECT_LOGGING_LEVEL": "DEBUG",
        },
    )
    with Stranger() as elsewhere, Echo() as echo, prefect:
        found = Evidence(prefect, secret, sign, elsewhere)
        with Processes(prefect.components) as processes:
            _save_blocks(prefect, key, emulator_server.base_url, echo.url)
            _scripts(emulator_server.control, sign.text, elsewhere.url)
            flows = [*entrypoints(Path(__file__).parent / "flows"), *entrypoints(ROOT / "noukai_prefect")]
            prefect.serve(*flows, name=sign.text)
            _run(found)
            _interrupt(found, emulator_server.control)
            for name, run in found.runs.items():
                found.states[name] = prefect.wait_for(run, timeout=300)
            found.processes = processes.places
        yield found


def _save_blocks(prefect: LocalPrefect, key: str, noukai: str, echo: str) -> None:
    page = "https://noukai.test/{flow}/{job_id}"
    blocks: dict[str, dict[str, Any]] = {
        "default": {"api_key": key, "base_url": noukai, "run_url_template": page},
        "echo": {"api_key": key, "base_url": echo},
        "bad-key": {"api_key": f"Bearer {key}", "base_url": noukai},
        "bad-org": {"api_key": key, "base_url": noukai, "org": "acme"},
    }
    prefect.save_blocks({name: ("NoukaiCredentials", fields) for name, fields in blocks.items()})


def _scripts(control: EmulatorControl, sign: str, elsewhere: str) -> None:
    """Set the script and faults of each flow on the local Noukai."""
    never, failed = {"outcome": "never"}, {"outcome": "failed", "error": f"the model said {sign}"}
    for name, script in {
        **dict.fromkeys(("failed", "failing", "batch_failed"), failed),
        **dict.fromkeys(("deadline", "endless", "refused_key_later", "redirected_later"), never),
        "cancelled": {"outcome": "cancelled"},
        "web_page_later": {"after_seconds": 3},
    }.items():
        control.script(f"{name.replace('_', '-')}-{sign}", **script)
    redirect = {"kind": "redirect", "location": f"{elsewhere}/jobs"}
    rejected = {"kind": "status", "status": 502, "code": "BYOK_KEY_REJECTED", "message": f"no, {sign}"}
    for name, on, times, fault in (
        ("refused_key", "submit", None, {"kind": "status", "status": 401}),
        ("batch_refused", "submit", None, {"kind": "status", "status": 403}),
        ("refused_key_later", "poll", None, {"kind": "expired_key"}),
        ("refused_model_key", "submit", None, rejected),
        ("web_page_later", "poll", 2, {"kind": "status", "status": 503, "body": "html"}),
        ("redirected", "any", None, redirect | {"status": 302}),
        ("redirected_later", "poll", None, redirect),
    ):
        control.fault(**fault, on=on, times=times, flow=f"{name.replace('_', '-')}-{sign}")


def _run(found: Evidence) -> None:
    sign, prefect = found.sign.text, found.prefect
    block = {"$ref": {"block_document_id": prefect.block("noukai-credentials", "default")["id"]}}
    for name in ("everything", "failing"):
        found.runs[name] = prefect.run(f"{name}/{sign}", {"sign": sign})
    for name in ("cancelled", "killed"):
        found.runs[name] = prefect.run(f"endless/{sign}", {"sign": sign})
    found.runs["kept"] = prefect.run(f"kept/{sign}", {"sign": sign, "credentials": block})
    form = {"credentials": block, "noukai_flow": f"acme/tests/form-{sign}", "message": sign}
    found.runs["form"] = prefect.run(f"noukai-job/{sign}", form)


def _interrupt(found: Evidence, control: EmulatorControl) -> None:
    """Cancel one run while its job runs, and kill the process of another."""
    slug = f"endless-{found.sign.text}"
    wait_until(lambda: sum(job["slug"] == slug for job in control.jobs()) == 2, "two endless jobs", 300)
    found.prefect.cancel(found.runs["cancelled"])
    os.kill(found.prefect.flow_run_process(found.runs["killed"]), signal.SIGKILL)
