"""What looks like many inputs, but gives the names of its columns."""

from __future__ import annotations

from collections.abc import Iterator


class Table:
    """A table, as pandas has them: no mapping, but iterating over it gives its keys."""

    def keys(self) -> list[str]:
        """Return the names of the columns."""
        return ["message"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())
