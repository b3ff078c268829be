"""Outputs as instances of a pydantic model, in a batch and alone."""

from __future__ import annotations

import json
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from noukai_core import InvalidInputError, JobOutcome, JobOutputInvalidError, MemoryLedger, OutcomeState
from noukai_core.output_types import check_output_type, json_output, typed_output
from tests.core.test_batch import BATCH, run, scripted

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator


class Mistake(BaseModel):
    """A part of the output."""

    word: str


class Grade(BaseModel):
    """The output of a flow."""

    model_config = ConfigDict(strict=True)

    points: int
    on: date
    mistakes: list[Mistake] = []


GOOD = {"points": 3, "on": "2026-01-02", "mistakes": [{"word": "kat"}]}


def typed(output: Any) -> Grade:
    """Return the typed output of a job."""
    return typed_output(output, Grade, job_id="job-1", flow="acme/spelling/grade-3")


def test_an_output_becomes_an_instance() -> None:
    """An output is read as JSON, so that a strict model accepts a date as text."""
    assert typed(GOOD) == Grade(points=3, on=date(2026, 1, 2), mistakes=[Mistake(word="kat")])


def test_the_error_names_the_job_and_the_fields() -> None:
    """The error names the job and each field, and shows no value of the output."""
    with pytest.raises(JobOutputInvalidError) as raised:
        typed({"points": "secret", "mistakes": [{}]})
    assert raised.value.job_id == "job-1"
    assert raised.value.fields == ("points", "on", "mistakes.0.word")
    message = str(raised.value)
    assert message.startswith("Noukai job job-1 of acme/spelling/grade-3: the output is no Grade: points: ")
    assert "secret" not in message


@pytest.mark.parametrize("output", [None, "text", [1], float("nan"), "\ud800"])
def test_an_output_of_another_form(output: Any) -> None:
    """Whatever a flow returns leads to this error and to no other."""
    with pytest.raises(JobOutputInvalidError, match="the whole output"):
        typed(output)


class Strange(BaseModel):
    """A model whose author expects another form."""

    name: str

    @field_validator("name", mode="before")
    @classmethod
    def _name(cls, value: Any) -> str:
        return value["text"]

    @field_serializer("name")
    def _text(self, name: str) -> str:
        raise KeyError(name)


def test_a_validator_that_raises_another_error() -> None:
    """An error of a validator that is no `ValueError` is named by its type, without values."""
    for output, raised in (({"name": "secret"}, "TypeError"), ({"name": {"secret": 1}}, "KeyError")):
        with pytest.raises(JobOutputInvalidError, match=f"no Strange: .*raised {raised}$"):
            typed_output(output, Strange, job_id="job-1", flow="acme/spelling/grade-3")


def test_half_of_a_surrogate_pair() -> None:
    """A text that cannot be encoded is still read."""
    assert typed_output({"word": "a\ud800"}, Mistake, job_id="job-1", flow="a/b/c") == Mistake(word="a?")


def test_an_instance_that_cannot_be_written() -> None:
    """An error of a serializer is named by its type, without values."""
    outcome = JobOutcome(0, "job-1", OutcomeState.COMPLETED, Strange.model_construct(name="secret"))
    with pytest.raises(
        JobOutputInvalidError, match=r"job-1: .*Strange\.model_dump raised \w+Error$"
    ) as raised:
        outcome.to_json()
    assert "secret" not in str(raised.value)


def test_many_wrong_fields_are_counted() -> None:
    """A message of many fields has the first of them and a number."""
    with pytest.raises(JobOutputInvalidError, match="and 97 more"):
        typed({"points": 1, "on": "never", "mistakes": [{}] * 101})


@pytest.mark.parametrize("output_type", [dict, "Grade", Grade(points=1, on=date(2026, 1, 2)), int | None])
def test_only_a_model_is_an_output_type(output_type: Any) -> None:
    """Anything else is refused, with what is allowed."""
    with pytest.raises(InvalidInputError, match=r"output_type is .* must be a pydantic model"):
        check_output_type(output_type)


class Undefined(BaseModel):
    """A model whose module imports a type only for type checkers."""

    on: Missing  # type: ignore[name-defined]  # pyright: ignore  # noqa: F821


@pytest.mark.parametrize("model", [BaseModel, Undefined, list[Grade]], ids=["BaseModel", "undefined", "list"])
def test_a_model_that_cannot_be_built(model: Any, emulator: Emulator) -> None:
    """It is refused before anything is submitted, since every output would be invalid."""
    with pytest.raises(InvalidInputError, match="output_type"):
        run("sync", emulator, ["one"], output_type=model)
    assert emulator.control.counts().get("submit", 0) == 0


def test_a_model_that_is_defined_later() -> None:
    """While a module is read, a model may refer to one that follows."""
    assert check_output_type(Undefined, defined=False) is Undefined


class Cat(BaseModel):
    """One of two."""

    kind: Literal["cat"]


class Dog(BaseModel):
    """The other."""

    kind: Literal["dog"]


class Owner(BaseModel):
    """A model whose words for what is wrong would quote the output."""

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    id: UUID


def test_no_text_of_pydantic_quotes_the_output() -> None:
    """Neither the tag of a union nor a wrong UUID is shown."""
    with pytest.raises(JobOutputInvalidError, match="pet: Input tag does not match") as raised:
        typed_output({"pet": {"kind": "secret"}, "id": "secret"}, Owner, job_id="job-1", flow="a/b/c")
    assert "secret" not in str(raised.value)
    assert "`s`" not in str(raised.value)


class Renamed(BaseModel):
    """A model with an alias, and a validator that returns another type."""

    full_name: str = Field(alias="fullName")
    word: str = ""

    @field_validator("word", mode="after")
    @classmethod
    def _word(cls, word: str) -> Any:
        return [word]


def test_an_instance_is_written_by_its_aliases() -> None:
    """The model can read again what it wrote, and no warning shows a value."""
    instance = typed_output({"fullName": "Ann", "word": "x"}, Renamed, job_id="job-1", flow="a/b/c")
    assert json_output(instance, job_id="job-1") == {"fullName": "Ann", "word": ["x"]}


class Echo(BaseModel):
    """What the local Noukai returns."""

    message: str
    points: int


def test_in_a_batch(driver: str, emulator: Emulator) -> None:
    """A rerun keeps the good outputs, and submits a new job for each input whose output was no instance."""
    ledger = MemoryLedger()
    options: dict[str, Any] = {"output_type": Echo, "ledger": ledger, "batch_id": BATCH, "in_order": True}
    inputs = [
        scripted("good", result={"message": "good", "points": 1}),
        scripted("bad", result={"message": "bad", "points": "many"}),
    ]
    good, bad = run(driver, emulator, inputs, **options)
    assert good.output == Echo(message="good", points=1)
    assert json.loads(json.dumps(good.to_json()))["output"] == {"message": "good", "points": 1}
    assert (bad.state, bad.output, type(bad.error)) == ("invalid_output", None, JobOutputInvalidError)
    assert bad.job_id in str(bad.error)
    assert bad.reason == "the output is no Echo: points: " + str(bad.error).rpartition("points: ")[2]
    inputs[1] = scripted("bad", result={"message": "bad", "points": 2})
    good_again, mended = run(driver, emulator, inputs, **options)
    assert (good_again.job_id, mended.output) == (good.job_id, Echo(message="bad", points=2))
    assert emulator.control.counts()["submit"] == 3
