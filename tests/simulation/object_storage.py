"""An object storage that the workers of a simulated Airflow share: it is slow, and it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from tests.simulation.choices import Choices
from tests.simulation.transports import Blocking

ROOT = "memory://outcomes"


class ObjectStorage:
    """Keeps files by their paths.

    Args:
        choices: Decides how slow it is, and whether it fails.
        process: Returns the process whose code runs now.
        tell: Adds a line to the story.

    Attributes:
        files: What it keeps.
    """

    def __init__(self, choices: Choices, process: Callable[[], Blocking], tell: Callable[..., None]) -> None:
        self._choices = choices
        self._process = process
        self._tell = tell
        self.files: dict[str, bytes] = {}

    def path(self, uri: str, conn_id: str | None, argument: str) -> StoragePath:
        """Return a path, as `storage_path` does."""
        return StoragePath(self, uri)

    def read(self, path: str) -> bytes:
        self._wait("read")
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]

    def write(self, path: str, content: bytes) -> None:
        end = self._choices.pick("end of a file", ("written", "failed", "written, but failed"), 0.05)
        self._wait("write", can_fail=False)
        if end != "failed":
            self.files[path] = content
        self._tell("the storage: {0} {1} {2}", path.removeprefix(ROOT), content, end)
        if end != "written":
            raise OSError(end)

    def delete(self, path: str) -> None:
        self._wait("delete")
        if self.files.pop(path, None) is None:
            raise FileNotFoundError(path)

    def names(self, path: str) -> list[str]:
        self._wait("list")
        found = [name for name in self.files if name.startswith(f"{path}/")]
        if not found:
            raise FileNotFoundError(path)
        return [name for name in found if "/" not in name.removeprefix(f"{path}/")]

    def _wait(self, what: str, *, can_fail: bool = True) -> None:
        self._process().sleep(self._choices.pick(f"slowness of a storage's {what}", (0.01, 3.0, 30.0), 0.03))
        if can_fail and self._choices.happens(f"a {what} of the storage fails", 0.03):
            raise OSError("the storage does not respond")


class StoragePath:
    """What the provider uses of Airflow's `ObjectStoragePath`."""

    protocol = "memory"

    def __init__(self, storage: ObjectStorage, path: str) -> None:
        self._storage = storage
        self.path = path

    @property
    def fs(self) -> Any:
        return SimpleNamespace(
            invalidate_cache=lambda: None, ls=lambda path, detail: self._storage.names(path)
        )

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def __truediv__(self, name: str) -> StoragePath:
        return StoragePath(self._storage, f"{self.path}/{name}")

    def __str__(self) -> str:
        return self.path

    def mkdir(self, *, parents: bool, exist_ok: bool) -> None:
        pass

    def exists(self) -> bool:
        return self.path in self._storage.files

    def read_bytes(self) -> bytes:
        return self._storage.read(self.path)

    def write_bytes(self, content: bytes) -> None:
        self._storage.write(self.path, content)

    def write_text(self, text: str) -> None:
        self.write_bytes(text.encode())

    def unlink(self) -> None:
        self._storage.delete(self.path)


class OneAfterTheOther:
    """A pool of threads that has one: what runs in it waits in virtual time."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(function, items)
