"""The fields of the blocks: which names they accept, and the type that a version has in a form."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, TypeAlias, TypeVar

from prefect.blocks.core import Block
from pydantic import AfterValidator, StrictInt
from pydantic.json_schema import SkipJsonSchema

B = TypeVar("B", bound=Block)

# A form has a text field for it; code may pass the number itself, as to a task.
VersionText: TypeAlias = Annotated[str | SkipJsonSchema[StrictInt], AfterValidator(str)]

# What Prefect writes beside the fields of a block.
_OF_PREFECT = ("block_type_slug", "_is_anonymous")


def refuse_unknown_fields(block: B) -> B:
    """Validate a block: every name that it was given is a field. Prefect itself would accept any name.

    An unknown name is removed: pydantic has stored an assignment before it is validated.

    Raises:
        ValueError: A name is unknown. The error names it, and the field whose name is close.
    """
    fields = list(type(block).model_fields)
    extra = block.__pydantic_extra__ or {}
    for name in extra:
        if name in _OF_PREFECT or name.startswith("_block_"):
            continue
        del extra[name]
        block.model_fields_set.discard(name)
        close = get_close_matches(name, fields, n=1)
        what_to_do = f"did you mean {close[0]}?" if close else f"the fields are {', '.join(fields)}"
        raise ValueError(f"{name} is not a field of {type(block).get_block_type_name()}: {what_to_do}")
    return block
