"""Models of outputs."""

from __future__ import annotations

from pydantic import BaseModel, field_serializer


class Undefined(BaseModel):
    """A model that cannot be built, since a type is not imported when the program runs."""

    on: Missing  # type: ignore[name-defined]  # pyright: ignore  # noqa: F821


class Grade(BaseModel):
    """What a flow is expected to return. Not all of it can be written as JSON."""

    points: int
    comment: str = "none"

    @field_serializer("comment")
    def _serialized(self, comment: str) -> str:
        if comment == "unwritable":
            raise ValueError("hunter2")
        return comment
