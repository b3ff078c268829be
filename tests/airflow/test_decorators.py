"""The decorators, with a fake task and a local Noukai."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from pydantic import BaseModel

from noukai_airflow._trigger_event import JobEvent, Reason
from noukai_airflow.decorators.batch import noukai_jobs_task
from noukai_airflow.decorators.noukai import noukai_task
from noukai_airflow.exceptions import NoukaiException, NoukaiPermanentException

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator

FLOW = "acme/demo/flow"
SESSION = "00000000-0000-4000-8000-000000000001"


pytestmark = pytest.mark.usefixtures("connected")


def run(make: Any, function: Any, context: Any, *arguments: Any, **keywords: Any) -> Any:
    """Decorate a function, call it in a DAG, and run the task that comes of it."""
    with DAG("dag", schedule=None):
        task = make(flow=FLOW, poll_interval=0.05, deferrable=False)(function)(*arguments, **keywords)
    return task.operator.execute(context)


def returning(value: object) -> Any:
    """A function without arguments that returns a value."""

    def inputs() -> object:
        return value

    return inputs


def test_a_function_that_returns_a_message(context: Any, emulator: Emulator) -> None:
    """The function gets the arguments of its call and the context, and a text it returns is the message."""

    def greeting(text: str, ti: Any) -> str:
        return f"{text} from {ti.task_id}"

    assert run(noukai_task, greeting, context, "Hello") == {"message": "Hello from task"}


@pytest.mark.parametrize("make", [noukai_task, noukai_jobs_task], ids=["job", "batch"])
def test_an_argument_with_a_name_of_airflow(make: Any, context: Any, emulator: Emulator) -> None:
    """An argument may have the name of something in the context, such as the `loop` of Airflow 3.4."""

    def greeting(loop: int, dag_run: str) -> Any:
        return [f"{dag_run} {loop}"] if make is noukai_jobs_task else f"{dag_run} {loop}"

    run(make, greeting, context, loop=3, dag_run="round")
    (job,) = emulator.control.jobs()
    assert job["message"] == "round 3"


@pytest.mark.parametrize("make", [noukai_task, noukai_jobs_task], ids=["job", "batch"])
def test_the_arguments_are_in_the_context(make: Any, context: Any, emulator: Emulator) -> None:
    """A `map_index_template` may name the arguments, as in other decorated tasks, after a deferral too."""

    def greeting(text: str) -> Any:
        return [text]

    with DAG("dag", schedule=None):
        task = make(flow=FLOW, poll_interval=0.05, deferrable=False)(greeting)(text="Hello").operator
    task.execute_complete = lambda context: None
    task.resume_execution("execute_complete", None, context)
    assert context.pop("text") == "Hello"
    with suppress(NoukaiPermanentException):
        task.execute(context)
    assert context["text"] == "Hello"


def test_a_function_that_returns_inputs(context: Any, emulator: Emulator) -> None:
    """A dict holds any inputs of the job, and what it leaves out stays as the decorator says."""
    inputs = {"message": "Hello", "parameters": {"level": 3}, "version": "draft", "session_id": SESSION}
    run(noukai_task, returning(inputs), context)
    (job,) = emulator.control.jobs()
    assert (job["message"], job["parameters"]) == ("Hello", {"level": 3})
    assert (job["version"], job["session_id"]) == ("draft", SESSION)


def test_a_task_that_calls_its_function_again(context: Any, emulator: Emulator) -> None:
    """What one call of the function returned is no part of the job of the next one."""
    calls = iter([{"message": "first", "version": "draft"}, {"parameters": {"level": 3}}, "third"])

    def inputs() -> Any:
        return next(calls)

    with DAG("dag", schedule=None):
        task = noukai_task(flow=FLOW, poll_interval=0.05, deferrable=False)(inputs)().operator
    for _ in range(3):
        task.execute(context)
    submitted = [(job["message"], job["parameters"], job["version"]) for job in emulator.control.jobs()]
    assert submitted == [
        ("first", None, "draft"),
        (None, {"level": 3}, "production"),
        ("third", None, "production"),
    ]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (7, "returned int, but must return the message as a string, or a dict with some of message, param"),
        (None, "returned NoneType"),
        ({"text": "Hello", "message": "Hello"}, "returned text, but a job's inputs are message, parameters"),
    ],
)
def test_a_function_that_returns_no_inputs(
    returned: object, message: str, context: Any, emulator: Emulator
) -> None:
    """The task fails without a retry, the error says what may be returned, and nothing is sent."""
    with pytest.raises(NoukaiPermanentException, match=re.escape(message)):
        run(noukai_task, returning(returned), context)
    assert emulator.control.counts().get("submit", 0) == 0


def test_a_function_that_returns_a_batch(context: Any, emulator: Emulator) -> None:
    """Each input that the function returns leads to a job, and the outputs come back in their order."""

    def texts(first: str, second: str) -> list[str]:
        return [first, second]

    outputs = run(noukai_jobs_task, texts, context, "one", "two")
    assert outputs == [{"message": "one"}, {"message": "two"}]


def test_the_type_of_the_outputs_of_a_batch(context: Any, emulator: Emulator) -> None:
    """A decorator's `output_type` is that of the operator, and not an argument of the function."""

    class Echo(BaseModel):
        message: str
        comment: str = "none"

    made = partial(noukai_jobs_task, output_type=Echo)
    assert run(made, returning(["one"]), context) == [{"message": "one", "comment": "none"}]


def test_a_function_that_returns_no_batch(context: Any, emulator: Emulator) -> None:
    """What is no list of inputs fails the task without a retry, and nothing is sent."""
    with pytest.raises(NoukaiPermanentException, match="inputs is a int"):
        run(noukai_jobs_task, returning(7), context)
    assert emulator.control.counts().get("submit", 0) == 0


def test_a_function_in_a_retry(context: Any, emulator: Emulator) -> None:
    """A retry that attaches to its job does not call the function, whose error would lose that job."""
    emulator.control.script("flow", outcome="never")
    calls: list[int] = []

    def greeting() -> str:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("no more")
        return "Hello"

    with DAG("dag", schedule=None):
        task = noukai_task(flow=FLOW, wait_for_completion=False)(greeting)().operator
    job_id = task.execute(context)
    emulator.control.finish(job_id, result="done")
    context["ti"].try_number = 2
    task.wait_for_completion = True
    assert task.execute(context) == "done"
    assert len(calls) == 1


def test_a_session_that_a_function_returns(context: Any, emulator: Emulator) -> None:
    """Without a state store, no retry finds a job in the user's own session, so a failure may cancel it."""
    from airflow.providers.common.compat.sdk import TaskDeferred

    emulator.control.script("flow", outcome="never")
    del context["task_state_store"]
    context["ti"].max_tries = 1

    def resumed() -> Any:
        with DAG("dag", schedule=None):
            made = noukai_task(
                flow=FLOW, deferrable=True, inline_wait=0, retries=1, on_final_failure="cancel"
            )
            return made(returning({"message": "Hello", "session_id": SESSION}))().operator

    with pytest.raises(TaskDeferred) as deferred:
        resumed().execute(context)
    (job,) = emulator.control.jobs()
    event = JobEvent(job["id"], Reason.UNEXPECTED_ERROR, "running").payload()
    arguments = (deferred.value.kwargs or {}) | {"event": event}
    with pytest.raises(NoukaiException, match="trigger failed"):
        resumed().resume_execution("execute_complete", arguments, context)
    assert emulator.control.job(job["id"])["state"] == "cancelled"
