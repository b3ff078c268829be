"""Changes of the code that break what it promises. The simulator has teeth if it finds each of them.

Each part has a module with its mutants.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of the source.

    Attributes:
        name: What is wrong then.
        module: The module that is changed.
        before: A part of its source, which is there once.
        after: What stands there instead.
        also: Further changes of the module, each with what is there once and what stands there instead.
    """

    name: str
    module: str
    before: str
    after: str
    also: tuple[tuple[str, str], ...] = ()

    def applied(self, source: str) -> str:
        """Return the source with the change."""
        for before, after in ((self.before, self.after), *self.also):
            if source.count(before) != 1:
                raise ValueError(
                    f"the mutant {self.name!r} does not fit {self.module} any more: "
                    f"{before!r} is there {source.count(before)} times"
                )
            source = source.replace(before, after)
        return source


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=_Loader(fullname, spec.origin, self._mutant)
        )


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, mutant: Mutant) -> None:
        super().__init__(fullname, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        source = self._mutant.applied(Path(self.path).read_text(encoding="utf-8"))
        return compile(source, self.path, "exec", dont_inherit=True)


def of_part(part: str) -> tuple[Mutant, ...]:
    """Return the mutants of a part."""
    mutants: tuple[Mutant, ...] = importlib.import_module(f"tests.simulation.mutants_{part}").MUTANTS
    return mutants


def put_in(part: str, name: str) -> None:
    """Let this process import the code with a mutant in it."""
    assert "noukai_core" not in sys.modules, "the code has been imported already"
    mutant = next(mutant for mutant in of_part(part) if mutant.name == name)
    sys.meta_path.insert(0, _Finder(mutant))
