"""The inputs of a batch: a list, or the lines of a JSONL or CSV file, which are read one by one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from noukai_airflow._storage import storage_path
from noukai_airflow.exceptions import NoukaiPermanentException
from noukai_core.batch_files import INPUT_SUFFIXES, read_inputs, shown_path
from noukai_core.checks import has_keys
from noukai_core.job_request import check_input

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

EMPTY = "inputs is empty: there is nothing to run"

_VERSIONS = ("ETag", "etag", "generation", "VersionId")
_BLOCK_BYTES = 1024 * 1024
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
        from airflow.sdk import ObjectStoragePath

        self.exhausted = False
        self.total: int | None = None
        self._path: ObjectStoragePath | None = None
        self._items: Iterable[object] = ()
        if isinstance(inputs, set | frozenset):
            raise NoukaiPermanentException(
                f"inputs is a {_type_name(inputs)}, whose order differs in each process: sort it first"
            )
        if isinstance(inputs, str | ObjectStoragePath):
            self._path = self._file(inputs, conn_id)
        elif has_keys(inputs) or not isinstance(inputs, Iterable):
            raise NoukaiPermanentException(f"inputs is a {_type_name(inputs)}, but must be {_FORMS}")
        elif isinstance(inputs, Sequence):
            # Airflow reads each output of a mapped task anew, whenever it is asked for.
            items = self._items = list(cast("Sequence[object]", inputs))
            self.total = len(items)
            if not self.total:
                raise NoukaiPermanentException(EMPTY)
        else:
            self._items = cast("Iterable[object]", inputs)

    @staticmethod
    def _file(location: str | ObjectStoragePath, conn_id: str | None) -> ObjectStoragePath:
        uri = str(location)
        if "://" not in uri:
            raise NoukaiPermanentException(f"inputs is the text {uri!r:.200}, but must be {_FORMS}")
        path, shown = storage_path(location, conn_id, "inputs"), shown_path(uri)
        if path.suffix not in INPUT_SUFFIXES:
            raise NoukaiPermanentException(f"inputs is {shown!r:.200}, but must be {_FORMS}")
        if not path.is_file():
            raise NoukaiPermanentException(f"inputs is {shown!r:.200}, but there is no such file")
        return path

    def fingerprint(self) -> dict[str, str] | None:
        """Return what tells these inputs from others, as JSON values.

        A file is known by its content, so that the same file may be uploaded again.

        Returns:
            `None` if the inputs cannot be read twice.
        """
        if self._path is not None:
            return self._version(self._path) | {"content": self._content(self._path)}
        if self.total is None:
            return None
        return {"content": _digest(self._items)}

    def matches(self, stored: object) -> bool:
        """Return whether these may be the inputs of an earlier fingerprint.

        A file is read only if the storage does not say that it is the same version of the same object.
        """
        if not isinstance(stored, dict):
            return True
        earlier = cast("dict[str, Any]", stored)
        version = {} if self._path is None else self._version(self._path)
        if version and version.items() <= earlier.items():
            return True
        found = self.fingerprint()
        return found is None or found["content"] == earlier.get("content")

    @staticmethod
    def _version(path: ObjectStoragePath) -> dict[str, str]:
        """Return what an object storage calls the version of a file; a time of modification is none."""
        details = cast("dict[str, Any]", path.fs.info(path.path))  # pyright: ignore
        found = next((details[name] for name in _VERSIONS if details.get(name)), None)
        return {} if found is None else {"version": hashlib.sha256(f"{path} {found}".encode()).hexdigest()}

    @staticmethod
    def _content(path: ObjectStoragePath) -> str:
        digest = hashlib.sha256()
        opened: Any = path.open("rb")  # type: ignore[no-untyped-call]  # pyright: ignore
        with opened as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def check(self) -> None:
        """Read a list or a file once, before anything is paid for, and count its inputs.

        Raises:
            InvalidInputError: An item or a line is no input.
            NoukaiPermanentException: There is none.
        """
        if self._path is None:
            if self.total is not None:
                for index, item in enumerate(self._items):
                    check_input(item, f"inputs[{index}]")
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


def _digest(items: Iterable[object]) -> str:
    try:
        text = json.dumps(items, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError):
        text = repr(items)  # the job client rejects such inputs with an explanation
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _type_name(value: Any) -> str:
    return type(value).__name__
