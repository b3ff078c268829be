"""Files on the machine or in an object storage, as URIs of the tasks name them."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import PurePath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from noukai_airflow.exceptions import NoukaiException, NoukaiPermanentException
from noukai_core.batch_files import shown_path, shown_reason

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


_LOCAL = "file"

# Temporary files have names of their own: one that contains the name of the output may be too long.
_TEMPORARY = "_noukai-"

# Storages report an outage as any other OSError. A ValueError is about the name, such as one with a NUL.
_LASTING = (
    PermissionError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    ValueError,
)


def storage_path(location: object, conn_id: str | None, argument: str) -> ObjectStoragePath:
    """Return the path of a file or folder.

    Args:
        location: Its URI, or an `ObjectStoragePath`, whose own connection takes precedence.
        conn_id: The Airflow connection of the storage.
        argument: What the path is for, for the message.

    Raises:
        NoukaiPermanentException: It is neither, has no scheme or one that Airflow does not know, or is local
            and not absolute.
    """
    from airflow.sdk import ObjectStoragePath

    if isinstance(location, ObjectStoragePath):
        conn_id = location.serialize()["conn_id"] or conn_id
    elif not isinstance(location, str):
        raise NoukaiPermanentException(
            f"{argument} is a {type(location).__name__}, but must be a URI such as file:///… or "
            "s3://bucket/…, or an ObjectStoragePath"
        )
    uri = str(location)
    if "://" not in uri:
        raise NoukaiPermanentException(
            f"{argument} is {uri!r:.200}, which has no scheme: write file:///… for a local path, or the URI "
            "of an object storage such as s3://bucket/…"
        )
    try:
        # On Airflow 3.1, a connection of None would replace the one that the URI names.
        path = ObjectStoragePath(uri) if conn_id is None else ObjectStoragePath(uri, conn_id=conn_id)
        host = urlsplit(uri).netloc.rpartition("@")[2]
        path.fs.protocol  # noqa: B018 - connects, so that a missing provider is reported here
    except (ValueError, ImportError) as error:
        # The error may name the URI with its signature or password, so it is no cause that is shown.
        raise NoukaiPermanentException(
            f"{argument} is {shown_path(uri)!r:.200}, which cannot be opened: {shown_reason(error, uri)}"
        ) from None
    if host and path.protocol == _LOCAL:
        raise NoukaiPermanentException(
            f"{argument} is {shown_path(uri)!r:.200}, which names {host!r:.100} as a host: write "
            "file:///… for a local path, with the whole path after the three slashes"
        )
    return path


def check_writable(folder: ObjectStoragePath, name: str | None = None) -> None:
    """Write and delete a file in a folder, before anything is paid for.

    Args:
        folder: The folder. It is made if it does not exist.
        name: What the file will be called, if a user chose its name.

    Raises:
        NoukaiPermanentException: That is not possible.
        NoukaiException: The storage fails at the moment.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if name is not None and folder.protocol == _LOCAL:
            # In a folder of its own: a file of this name may be there, or be written by another try.
            with TemporaryDirectory(prefix=_TEMPORARY, dir=folder.path) as own:
                (folder / PurePath(own).name / name).write_text("")
            return
        probe = _temporary_file(folder)  # other tasks may check the same folder
        probe.write_text("")
        probe.unlink()
    except (OSError, ValueError) as error:
        lasts = isinstance(error, _LASTING) or getattr(error, "errno", None) == errno.ENAMETOOLONG
        kind = NoukaiPermanentException if lasts else NoukaiException
        raise kind(f"output_path {folder} cannot be written: {error}") from error


def files_in(folder: ObjectStoragePath) -> list[ObjectStoragePath]:
    """Return what is in a folder; nothing if it does not exist.

    `glob()`, `is_dir()` and `exists()` of many storages take one that cannot be read for an absent one.

    Raises:
        OSError: It cannot be read.
    """
    storage: Any = folder.fs
    storage.invalidate_cache()  # what was written with another path is not in this one's cache
    try:
        names = storage.ls(folder.path, detail=False)
    except FileNotFoundError:
        return []
    return [folder / str(name).rstrip("/").rpartition("/")[2] for name in sorted(names)]


def write_text(path: ObjectStoragePath, text: str) -> int:
    """Write a file that is complete as soon as it is visible, and return its size in bytes."""
    content = text.encode(errors="backslashreplace")  # half a surrogate pair, as JSON escapes it
    if path.protocol != _LOCAL:
        path.write_bytes(content)  # an object appears when it is complete
        return len(content)
    unfinished = _temporary_file(path.parent)  # two tries may write at once
    unfinished.write_bytes(content)
    unfinished.replace(path)
    return len(content)


def _temporary_file(folder: ObjectStoragePath) -> ObjectStoragePath:
    return folder / f"{_TEMPORARY}{secrets.token_hex(4)}.tmp"


@contextmanager
def accessing(
    path: ObjectStoragePath, access: Literal["read", "written", "emptied"]
) -> Generator[None, None, None]:
    """Name the path that could not be accessed.

    Args:
        path: The path.
        access: What is done with it.

    Raises:
        NoukaiException: It could not. Retries apply: what was paid for is not lost with it.
    """
    try:
        yield
    except OSError as error:
        raise NoukaiException(
            f"output_path {path} cannot be {access}: {error}. A retry tries again, without new jobs"
        ) from error
