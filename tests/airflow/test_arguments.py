"""The arguments of operators and of the sensor when a DAG is parsed, mapped and rendered."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from airflow.sdk import DAG, BaseOperator, XComArg, literal

from noukai_airflow.operators.batch import NoukaiRunJobsOperator
from noukai_airflow.operators.noukai import NoukaiRunJobOperator
from noukai_airflow.sensors.noukai import NoukaiJobSensor
from noukai_core import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

FLOW = "acme/demo/flow"
NEEDED: dict[type[BaseOperator], dict[str, Any]] = {
    NoukaiRunJobOperator: {"flow": FLOW, "message": "Hello"},
    NoukaiRunJobsOperator: {"flow": FLOW, "inputs": ["Hello"]},
    NoukaiJobSensor: {"flow": FLOW, "job_id": "job-1"},
}
ARGUMENTS = [
    pytest.param(made, name, id=f"{made.__name__}-{name}")
    for made in NEEDED
    for name in inspect.signature(made.__init__).parameters
    if name not in ("self", "kwargs")
]
INVALID = [
    (NoukaiRunJobOperator, {"timeout": "abc"}),
    (NoukaiRunJobsOperator, {"fail_on": 7}),
    (NoukaiRunJobsOperator, {"output_type": dict}),
    (NoukaiJobSensor, {"allowed_states": ["done"]}),
    (NoukaiJobSensor, {"follow": "closely"}),
]


@pytest.mark.parametrize(("made", "name"), ARGUMENTS)
def test_the_output_of_another_task(made: type[BaseOperator], name: str) -> None:
    """An argument that is the output of a task waits for that task, or is refused by its name at once."""
    with DAG("dag", schedule=None):
        upstream = BaseOperator(task_id="upstream")
        arguments = NEEDED[made] | {"task_id": "task", name: XComArg(upstream)}
        try:
            task = made(**arguments)
        except (ValueError, AirflowException) as error:  # the sensor of Airflow 3.1 raises its own
            assert name in str(error)
        else:
            assert task.upstream_task_ids == {"upstream"}


@pytest.mark.parametrize("name", ["trace", "durable", "cancel_on_kill"])
def test_a_template_for_a_flag(name: str) -> None:
    """A text where True or False belongs is refused at once, as it would never be rendered."""
    with pytest.raises(InvalidInputError, match=f"{name} is '.*', but must be True or False"):
        NoukaiRunJobOperator(task_id="task", flow=FLOW, message="Hello", **{name: "{{ params.flag }}"})


def test_templated_callback_events() -> None:
    """The events may be templates."""
    with DAG("dag", schedule=None):
        task = NoukaiRunJobOperator(
            task_id="task", flow=FLOW, message="Hello", callback_events=["{{ params.event }}"]
        )
    task.render_template_fields({"params": {"event": "flow.failed"}})  # type: ignore[typeddict-item]
    assert task.callback_events == ["flow.failed"]


@pytest.mark.parametrize(("made", "invalid"), INVALID)
def test_an_invalid_argument_of_a_mapped_task(made: Any, invalid: dict[str, Any]) -> None:
    """A mapped task, whose arguments are checked when it runs, is not retried for one that is wrong."""
    needed = NEEDED[made] | invalid
    mapped_name, mapped = needed.popitem() if "message" not in needed else ("message", needed.pop("message"))
    with DAG("dag", schedule=None) as dag:
        made.partial(task_id="task", retries=3, **needed).expand(**{mapped_name: [mapped]})
    task: Any = dag.get_task("task")
    with pytest.raises(AirflowFailException) as caught:
        task.unmap({mapped_name: mapped})
    assert isinstance(caught.value, InvalidInputError)
    assert next(iter(invalid)) in str(caught.value)


def test_a_prompt_with_braces() -> None:
    """`literal` keeps a text from being rendered, at the top and among the parameters."""
    with DAG("dag", schedule=None):
        task = NoukaiRunJobOperator(
            task_id="task",
            flow=FLOW,
            message=literal("Explain {{ x }} and {# y #}"),  # type: ignore[arg-type]
            parameters={"example": literal("{% z"), "day": "{{ ds }}"},
        )
    task.render_template_fields({"ds": "2026-01-01"})  # type: ignore[typeddict-item]
    assert task.message == "Explain {{ x }} and {# y #}"
    assert task.parameters == {"example": "{% z", "day": "2026-01-01"}


def test_a_prompt_in_a_file(tmp_path: Path) -> None:
    """A file beside the DAG, or in its `template_searchpath`, is included and rendered."""
    (tmp_path / "prompt.md").write_text("Grade the essays of {{ ds }}.")
    with DAG("dag", schedule=None, template_searchpath=str(tmp_path)):
        task = NoukaiRunJobOperator(task_id="task", flow=FLOW, message="{% include 'prompt.md' %}")
    task.render_template_fields({"ds": "2026-01-01"})  # type: ignore[typeddict-item]
    assert task.message == "Grade the essays of 2026-01-01."


def test_the_inputs_of_a_batch_are_shown_as_json() -> None:
    """Airflow's page shows the inputs as JSON, and not as one line of Python."""
    assert NoukaiRunJobsOperator.template_fields_renderers == {"inputs": "json"}
