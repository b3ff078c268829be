"""The shipped flows, where there is no file of their author: on a work pool."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.flows import EntrypointType, Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from noukai_prefect import flows

if TYPE_CHECKING:
    from pathlib import Path

WITH_VERSION = [flows.noukai_job, flows.noukai_jobs]
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


@pytest.mark.parametrize("flow", WITH_VERSION, ids=lambda flow: flow.name)
@pytest.mark.parametrize(("version", "taken"), [("draft", "draft"), ("7", "7"), (7, "7")])
def test_version(flow: Flow[Any, Any], version: str | int, taken: str) -> None:
    """A version may be a word, or a number as text from the form or as itself from code."""
    given = {"noukai_flow": "acme/spelling/grade-3", "messages": ["hello"], "version": version}
    parameters = {name: given[name] for name in inspect.signature(flow).parameters if name in given}
    assert flow.validate_parameters(parameters)["version"] == taken


@pytest.mark.parametrize("flow", WITH_VERSION, ids=lambda flow: flow.name)
@pytest.mark.parametrize("version", [True, 1.0, None])
def test_a_version_of_another_type(flow: Flow[Any, Any], version: Any) -> None:
    """What is neither text nor a whole number is refused before the flow begins."""
    with pytest.raises(ParameterTypeError, match="version"):
        flow.validate_parameters({"noukai_flow": "acme/spelling/grade-3", "version": version})


@pytest.mark.parametrize("flow", WITH_VERSION, ids=lambda flow: flow.name)
def test_the_form_asks_for_a_version_as_text(flow: Flow[Any, Any]) -> None:
    """The form of a run has a plain text field for the version."""
    properties = parameter_schema(flow).model_dump()["properties"]
    assert properties["version"]["type"] == "string"
