"""Files on the machine or in an object storage, as URIs of the tasks name them."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from noukai_airflow.exceptions import NoukaiException, NoukaiPermanentException
from noukai_core.batch_files import shown_path, shown_reason

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


# Storages report an outage as any other OSError.
_LASTING = (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


def storage_path(uri: str, conn_id: str | None, argument: str) -> ObjectStoragePath:
    """Return the path of a file or folder.

    Args:
        uri: The path, with its scheme.
        conn_id: The Airflow connection of the storage.
        argument: What the path is for, for the message.

    Raises:
        NoukaiPermanentException: It has no scheme, or one that Airflow does not know.
    """
    from airflow.sdk import ObjectStoragePath

    if "://" not in uri:
        raise NoukaiPermanentException(
            f"{argument} is {uri!r:.200}, which has no scheme: write file:///… for a local path, or the URI "
            "of an object storage such as s3://bucket/…"
        )
    try:
        path = ObjectStoragePath(uri, conn_id=conn_id)
        path.fs.protocol  # noqa: B018 - connects, so that a missing provider is reported here
    except (ValueError, ImportError) as error:
        # The error may name the URI with its signature or password, so it is no cause that is shown.
        raise NoukaiPermanentException(
            f"{argument} is {shown_path(uri)!r:.200}, which cannot be opened: {shown_reason(error, uri)}"
        ) from None
    return path


def check_writable(folder: ObjectStoragePath) -> None:
    """Write and delete a file in a folder, before anything is paid for.

    Raises:
        NoukaiPermanentException: That is not possible.
        NoukaiException: The storage fails at the moment.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"_noukai-{secrets.token_hex(4)}.tmp"  # other tasks may check the same folder
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        kind = NoukaiPermanentException if isinstance(error, _LASTING) else NoukaiException
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
    if path.protocol != "file":
        path.write_bytes(content)  # an object appears when it is complete
        return len(content)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")  # two tries may write at once
    unfinished.write_bytes(content)
    unfinished.replace(path)
    return len(content)


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
