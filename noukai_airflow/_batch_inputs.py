"""The inputs of a batch: a list, or the lines of a JSONL or CSV file, which are read one by one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from noukai_airflow._storage import storage_path
from noukai_airflow.exceptions import NoukaiPermanentException
from noukai_core.batch_files import INPUT_SUFFIXES, read_inputs, shown_path

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

_FORMS = "a list of messages, or the URI of a file that ends in .jsonl or .csv"


class BatchInputs:
    """Iterates over the inputs of a batch.

    Args:
        inputs: The argument of the task.
        conn_id: The Airflow connection of the storage, if the inputs are in a file.

    Attributes:
        exhausted: Whether all inputs were read.
        total: How many inputs there are, if that is known.

    Raises:
        NoukaiPermanentException: The argument has none of the forms that are possible.
    """

    def __init__(self, inputs: object, conn_id: str | None) -> None:
        self.exhausted = False
        self.total: int | None = None
        self._path: ObjectStoragePath | None = None
        self._items: Iterable[object] = ()
        if isinstance(inputs, str):
            self._path = self._file(inputs, conn_id)
        elif isinstance(inputs, Mapping) or not isinstance(inputs, Iterable):
            raise NoukaiPermanentException(f"inputs is a {_type_name(inputs)}, but must be {_FORMS}")
        else:
            self._items = cast("Iterable[object]", inputs)
            if isinstance(inputs, list | tuple):
                self.total = len(cast("list[object]", inputs))
                if not self.total:
                    raise NoukaiPermanentException("inputs is empty: there is nothing to run")

    @staticmethod
    def _file(uri: str, conn_id: str | None) -> ObjectStoragePath:
        if "://" not in uri:
            raise NoukaiPermanentException(f"inputs is the text {uri!r:.200}, but must be {_FORMS}")
        path, shown = storage_path(uri, conn_id, "inputs"), shown_path(uri)
        if path.suffix not in INPUT_SUFFIXES:
            raise NoukaiPermanentException(f"inputs is {shown!r:.200}, but must be {_FORMS}")
        if not path.is_file():
            raise NoukaiPermanentException(f"inputs is {shown!r:.200}, but there is no such file")
        return path

    def fingerprint(self) -> str | None:
        """Return what tells these inputs from others; `None` if that would mean to read them all."""
        if self._path is not None:
            details = cast("dict[str, Any]", self._path.fs.info(self._path.path))  # pyright: ignore
            known = [str(details[name]) for name in ("ETag", "etag", "mtime", "size") if name in details]
            return hashlib.sha256("\x1f".join([str(self._path), *known]).encode()).hexdigest()
        if self.total is None:
            return None
        return hashlib.sha256(json.dumps(self._items, sort_keys=True, default=str).encode()).hexdigest()

    def check(self) -> None:
        """Read a file once, before anything is paid for, and count its inputs.

        Raises:
            NoukaiPermanentException: A line is no input, or there is none.
        """
        if self._path is None:
            return
        self.total = sum(1 for _ in self._lines(self._path))
        if not self.total:
            raise NoukaiPermanentException(
                f"inputs {shown_path(str(self._path))} is empty: there is nothing to run"
            )

    def __iter__(self) -> Iterator[Any]:
        """Yield the messages and mappings.

        Raises:
            InvalidInputError: A line of the file is none.
        """
        yield from self._items if self._path is None else self._lines(self._path)
        self.exhausted = True

    def _lines(self, path: ObjectStoragePath) -> Iterator[Any]:
        # Object storages have no text mode of their own; utf-8-sig drops the mark that some programs write.
        opened: Any = path.open("r", encoding="utf-8-sig", newline="")  # type: ignore[no-untyped-call]  # pyright: ignore
        with opened as file:
            yield from read_inputs(file, str(path))


def _type_name(value: Any) -> str:
    return type(value).__name__
