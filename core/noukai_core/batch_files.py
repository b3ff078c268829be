"""The files of a batch, in the same form in each orchestrator: inputs as JSONL or CSV, outcomes as JSONL."""

from __future__ import annotations

import csv
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from noukai_core._validation import is_mapping
from noukai_core.errors import InvalidInputError
from noukai_core.job_request import check_input

INPUT_SUFFIXES = (".jsonl", ".csv")
"""What the name of a file with inputs ends with."""

FAILED = "failed.jsonl"
"""The file of the jobs that did not complete."""

_PART = re.compile(r"part-[0-9]{5,}-[0-9a-f]{8}\.jsonl", re.ASCII)
# Half a pair, which JSON can name in an escape, but UTF-8 cannot hold.
_SURROGATE = re.compile("[\ud800-\udfff]")
_USER = re.compile(r"(?<=://)[^\s/?#]*@")
_QUERY = re.compile(r"(://[^\s?]*)\?[^\s'\")>]*")
_MAX_ROWS = 1_000
_MAX_BYTES = 8 * 1024 * 1024
_MAX_SECONDS = 30.0


def shown_path(path: str) -> str:
    """Return a path or URI without its query and its user, which may be a signature and a password."""
    return _USER.sub("", path.partition("?")[0]) if "://" in path else path


def shown_reason(error: BaseException, path: str) -> str:
    """Return the text of an error about a file, in which no URI has a query or a user.

    Args:
        error: The error.
        path: The path or URI of the file, as it was given.
    """
    text = str(error) or type(error).__name__
    if "://" in path and (query := path.partition("?")[2]):
        text = text.replace(f"?{query}", "")  # also where the file system names the path alone
    return _QUERY.sub(r"\1", _USER.sub("", text))


def read_inputs(lines: Iterable[str], name: str) -> Iterator[Any]:
    """Yield the inputs in a file, one by one.

    In a JSONL file each line is a message or an object with `message`, `parameters`, `block_overrides` and
    `key`. In a CSV file, the columns other than `message` and `key` are parameters.

    Args:
        lines: The lines of the file, whose line ends are kept.
        name: Its path or URI. The ending decides the form, and errors name it without query and user.

    Raises:
        InvalidInputError: A line is no input, or the file cannot be read.
    """
    shown = shown_path(name)
    try:
        yield from _csv_rows(lines, shown) if shown.endswith(".csv") else _json_lines(lines, shown)
    except (UnicodeDecodeError, OSError) as error:
        # The error may name the URI with its query, so it is no cause that is shown.
        raise InvalidInputError(f"inputs {shown}: cannot be read: {shown_reason(error, name)}") from None


def _json_lines(lines: Iterable[str], name: str) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _malformed(name, number, f"no JSON ({error})") from None
        if not (isinstance(value, str) or is_mapping(value)):
            raise _malformed(name, number, "neither a text nor an object")
        check_input(value, _line(name, number))
        yield value


def _csv_rows(lines: Iterable[str], name: str) -> Iterator[Any]:
    reader = csv.DictReader(lines, strict=True)
    try:
        _check_columns(reader.fieldnames or (), name)
        for row in reader:
            if None in row or None in row.values():
                columns = len(reader.fieldnames or ())
                raise _malformed(name, reader.line_num, f"a row without exactly {columns} columns")
            message, key = row.pop("message", None), row.pop("key", None)
            fields = {"message": message, "key": key, "parameters": row or None}
            check_input(fields, _line(name, reader.line_num))
            yield fields
    except csv.Error as error:
        hint = "; use a .jsonl file for texts of this length" if "field limit" in str(error) else ""
        raise _malformed(name, reader.reader.line_num, f"no CSV ({error}){hint}") from None


def _check_columns(columns: Sequence[str], name: str) -> None:
    """Check the header, since a column that is not recognised would become a parameter of paid jobs."""
    for column, count in Counter(columns).items():
        if count > 1:
            raise _malformed(name, 1, f"the column {column!r:.100} is there {count} times")
        if not column or column != column.strip():
            raise _malformed(
                name, 1, f"the column {column!r:.100} has no name, or one that begins or ends with a space"
            )
        if ";" in column or "\t" in column:
            raise _malformed(name, 1, f"the column {column!r:.100}: columns are separated by commas")
        if column.lower() == "message" and "message" not in columns:
            raise _malformed(name, 1, f"the column {column!r} must be written 'message'")


def _malformed(name: str, number: int, what: str) -> InvalidInputError:
    return InvalidInputError(f"{_line(name, number)}: {what}")


def _line(name: str, number: int) -> str:
    return f"inputs {name}, line {number}"


def json_text(value: Any, separators: tuple[str, str] | None = None) -> str:
    """Return a value as JSON that every reader takes.

    A server may send NaN and infinity, which Python reads and writes, but JSON does not have. They become
    null.

    Args:
        value: The value.
        separators: What stands between items, and after names; by default with spaces.
    """
    try:
        return json.dumps(value, ensure_ascii=False, separators=separators, allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(value), parse_constant=lambda constant: None)
        return json.dumps(finite, ensure_ascii=False, separators=separators)


def json_line(row: Mapping[str, Any]) -> str:
    """Return an outcome as a line of JSONL, without the line end."""
    line = json_text(row, (",", ":"))
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", line)


def is_part(name: str) -> bool:
    """Return whether this is the name of a file with completed jobs, and no path to another place."""
    return _PART.fullmatch(name) is not None


class OutcomePart:
    """The completed jobs that are written next, as one file.

    Args:
        number: How many files precede it.
        writer: What tells the files of this attempt from those of another that may be alive as well; by
            default a new one.

    Attributes:
        rows: The jobs.
    """

    def __init__(self, number: int = 0, writer: str | None = None) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self._number = number
        self._writer = writer or secrets.token_hex(4)
        self._lines: list[str] = []
        self._size = 0
        self._oldest = 0.0

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"part-{self._number + 1:05}-{self._writer}.jsonl"

    @property
    def text(self) -> str:
        """The content of the file."""
        return "".join(f"{line}\n" for line in self._lines)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a completed job."""
        line = json_line(row)
        if not self.rows:
            self._oldest = time.monotonic()
        self.rows.append(row)
        self._lines.append(line)
        self._size += len(line)

    def is_due(self) -> bool:
        """Return whether it is large or old enough to be written."""
        return bool(self.rows) and (
            len(self.rows) >= _MAX_ROWS
            or self._size >= _MAX_BYTES
            or time.monotonic() - self._oldest >= _MAX_SECONDS
        )

    def following(self) -> OutcomePart:
        """Return the part after this one, which is written."""
        return OutcomePart(self._number + 1, self._writer)
