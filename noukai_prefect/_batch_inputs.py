"""The inputs of a batch: a list, anything to iterate over, or the lines of a JSONL or CSV file."""

from __future__ import annotations

import asyncio
import hashlib
import os
import reprlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias, TypeGuard, cast
from weakref import WeakSet

import fsspec  # type: ignore[import-untyped]  # pyright: ignore

from noukai_core import InvalidInputError, JobInput, JobRequest
from noukai_core.batch_files import INPUT_SUFFIXES, read_inputs, shown_path, shown_reason
from noukai_core.checks import has_keys
from noukai_core.job_request import request_of

Inputs: TypeAlias = Iterable[JobInput] | AsyncIterable[JobInput] | str | os.PathLike[str]
"""What a batch takes: one input per job, or the path or URI of a file with them."""

_FORMS = "a list with one input per job, or the path of a .jsonl or .csv file"
_LINES_AT_ONCE = 200

_READ_ONCE = "A generator or iterator can be read only once, so a task that is retried needs a list or a file"

# What is left of one would take the places of the inputs that were read before.
_read_before: WeakSet[Any] = WeakSet()

# Those to which no weak reference is possible, such as `zip` and `map`, by id. One leaves when nothing is
# left of it, so only what an interrupted attempt was reading is kept alive.
_partly_read: dict[int, Any] = {}


class BatchInputs:
    """The inputs of a batch, checked as far as that is possible before the first one is taken.

    Args:
        flow: The Noukai flow.
        inputs: The argument of the task.
        version: The version of the flow.
        trace: Whether runs are traced.

    Attributes:
        total: How many there are, if that is known.

    Raises:
        InvalidInputError: They have none of the forms that are possible.
    """

    def __init__(self, flow: str, inputs: Any, version: str | int, trace: bool) -> None:
        self.total: int | None = None
        self._given: Iterable[Any] | AsyncIterable[Any] = ()
        self._path: str | None = None
        self._content: Any = "iterable"
        self._jobs = {"version": version, "trace": trace}
        if isinstance(inputs, set | frozenset):
            kind = type(cast("object", inputs)).__name__
            raise InvalidInputError(f"inputs is a {kind}, whose order differs in each process: sort it first")
        if isinstance(inputs, str | os.PathLike):
            self._path = _path_of(os.fspath(cast("str | os.PathLike[str]", inputs)))
        elif _is_list(inputs):
            requests = [
                request_of(one, flow, f"inputs[{index}]", version=version, trace=trace)
                for index, one in enumerate(inputs)
            ]
            self.total = len(requests)
            self._given = requests
            self._content = [request.arguments() for request in requests]
        elif _is_iterable(inputs):
            self._given = inputs
        else:
            raise InvalidInputError(f"inputs is a {type(inputs).__name__}, but must be {_FORMS}")
        if self.total == 0:
            raise InvalidInputError("inputs is empty: there is nothing to run")

    async def check(self) -> None:
        """Read a file once, before anything is paid for.

        Raises:
            InvalidInputError: A line is no input, the file cannot be read, or there is none.
        """
        if self._path is None:
            return
        self.total, digest = await asyncio.to_thread(self._count)
        if self.total == 0:
            raise InvalidInputError(f"inputs {shown_path(self._path)} is empty: there is nothing to run")
        self._content = [os.path.splitext(shown_path(self._path))[1], digest]

    @property
    def content(self) -> Any:
        """What tells these inputs and their jobs from those of another batch, as JSON values."""
        return {**self._jobs, "inputs": self._content}

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Yield the inputs."""
        if _is_read_once(self._given):
            _note_read(self._given)
        taken = 0
        async for value in self._values():
            taken += 1
            yield value
        _partly_read.pop(id(self._given), None)
        if not taken:
            raise InvalidInputError(f"inputs had nothing to read. {_READ_ONCE}")

    async def _values(self) -> AsyncIterator[Any]:
        if self._path is not None:
            lines = self._read()
            while chunk := await asyncio.to_thread(lambda: list(islice(lines, _LINES_AT_ONCE))):
                for value in chunk:
                    yield value
        elif isinstance(self._given, AsyncIterable):
            async for value in self._given:
                yield value
        else:
            for value in self._given:
                yield value

    def _read(self, on_line: Callable[[bytes], None] = lambda _: None) -> Iterator[Any]:
        """Yield the inputs in the file."""
        path = str(self._path)
        try:
            with _opened(path, "rt", encoding="utf-8-sig", newline="") as file:
                yield from read_inputs(_shown_to(on_line, file), path)
        except InvalidInputError:
            raise
        except Exception as error:
            # A file system raises errors of its own, which may name the URI with its query.
            reason = shown_reason(error, path)
            raise InvalidInputError(f"inputs {shown_path(path)}: cannot be opened: {reason}") from None

    def _count(self) -> tuple[int, str]:
        """Return the number of inputs in the file, and a digest of its content."""
        digest = hashlib.sha256()
        return sum(1 for _ in self._read(digest.update)), digest.hexdigest()


def _shown_to(on_line: Callable[[bytes], None], lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        on_line(line.encode())
        yield line


def _opened(path: str, *mode: str, **options: str) -> Any:
    return cast("Any", fsspec).open(path, *mode, **options)


def beginning_of(value: Any) -> str:
    """Return the beginning of an input, for the table."""
    message: Any = value
    parameters: Any = None
    if isinstance(value, JobRequest):
        message, parameters = value.message, value.parameters
    elif isinstance(value, Mapping):
        fields = cast("Mapping[str, Any]", value)
        message, parameters = fields.get("message"), fields.get("parameters")
    return message[:200] if isinstance(message, str) else reprlib.repr(parameters)


def _is_list(inputs: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(inputs, Sequence) and not isinstance(inputs, bytes)


def _is_iterable(inputs: object) -> TypeGuard[Iterable[Any] | AsyncIterable[Any]]:
    if has_keys(inputs):
        return False
    return isinstance(inputs, Iterable | AsyncIterable) and not isinstance(inputs, bytes)


def _is_read_once(inputs: Iterable[Any] | AsyncIterable[Any]) -> bool:
    return isinstance(inputs, Iterator | AsyncIterator)


def _note_read(inputs: Any) -> None:
    """Take note that an iterator is read.

    Raises:
        InvalidInputError: It was read before.
    """
    try:
        before = inputs in _read_before
        _read_before.add(inputs)
    except TypeError:
        before = id(inputs) in _partly_read
        _partly_read[id(inputs)] = inputs
    if before:
        raise InvalidInputError(f"inputs was read before. {_READ_ONCE}")


def _path_of(path: str) -> str:
    shown = shown_path(path)
    if not shown.endswith(INPUT_SUFFIXES):
        raise InvalidInputError(f"inputs is the text {shown!r:.200}, but must be {_FORMS}")
    return path
