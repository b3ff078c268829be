"""The documented Prefect examples run as they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import prefect
import pytest
from prefect.flows import Flow

from noukai_prefect import NoukaiCredentials, NoukaiJob
from tests.documents import Example, examples

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

pytestmark = pytest.mark.usefixtures("prefect_server")

LOCAL_NOUKAI = "http://127.0.0.1:8090/api/v1"


@pytest.mark.parametrize("example", examples("noukai_prefect"), ids=lambda example: example.where)
def test_an_example_runs(
    example: Example, emulator: Emulator, credentials: NoukaiCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example runs on a Prefect server against a local Noukai; a flow that it defines submits a job."""
    monkeypatch.setenv("NOUKAI_API_KEY", "nk_test_documents")
    monkeypatch.setattr(prefect, "serve", no_deployment)
    monkeypatch.setattr(Flow, "serve", no_deployment)
    for block in (NoukaiCredentials, NoukaiJob):
        block.register_type_and_schema()
    credentials.save("default", overwrite=True)
    names: dict[str, Any] = {"__name__": "__main__"}
    code = example.code.replace(LOCAL_NOUKAI, emulator.base_url)
    exec(compile(code, example.where, "exec"), names)
    if any(isinstance(value, Flow) and value.__module__ == "__main__" for value in names.values()):
        assert emulator.control.jobs(), "the example calls no flow that it defines"


def no_deployment(*_: Any, **__: Any) -> None:
    """Takes the place of what would serve until Ctrl-C."""
