"""The shipped flows, where there is no file of their author: on a work pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prefect.flows import EntrypointType, Flow, load_flow_from_entrypoint

from noukai_prefect import flows

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = sorted(name for name, value in vars(flows).items() if isinstance(value, Flow))


def test_flows_are_found() -> None:
    """The test below sees the flows."""
    assert SHIPPED == ["noukai_job", "noukai_jobs", "resume_noukai_runs", "watch_noukai_runs"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_flow_is_deployed_as_its_module(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment by module names nothing of this machine, and loads from any folder."""
    flow: Any = getattr(flows, name)
    monkeypatch.chdir(tmp_path)
    deployment = flow.to_deployment("form", entrypoint_type=EntrypointType.MODULE_PATH)
    assert deployment.entrypoint == f"noukai_prefect.flows.{name}"
    assert load_flow_from_entrypoint(deployment.entrypoint).name == flow.name
