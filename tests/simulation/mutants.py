"""Changes of the core that break what it promises. The simulator has teeth if it finds each of them."""

from __future__ import annotations

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
    """

    name: str
    module: str
    before: str
    after: str

    def applied(self, source: str) -> str:
        """Return the source with the change."""
        if source.count(self.before) != 1:
            raise ValueError(
                f"the mutant {self.name!r} does not fit {self.module} any more: "
                f"{self.before!r} is there {source.count(self.before)} times"
            )
        return source.replace(self.before, self.after)


_SUBMIT = "noukai_core._engine.submit"
_WAIT = "noukai_core._engine.wait"
_LIMIT = "noukai_core._engine.rate_limit"
_EFFECTS = "noukai_core._engine.effects"
_SCHEDULE = "noukai_core._engine.schedule"
_ENDPOINTS = "noukai_core._api.endpoints"
_PARSING = "noukai_core._api.parsing"
_HANDLES = "noukai_core._handles"

MUTANTS = (
    Mutant(
        "the recovery window is inverted",
        _SUBMIT,
        "if now >= settled_at:",
        "if now <= settled_at:",
    ),
    Mutant(
        "the recovery window begins with the call, not with the end of the request",
        _SUBMIT,
        "doubtful_since, doubt = clock(), outcome",
        "doubtful_since, doubt = started, outcome",
    ),
    Mutant(
        "a submission without an end is sent again without a look-up",
        _SUBMIT,
        "doubtful_since, doubt = clock(), outcome",
        "doubtful_since, doubt = None, outcome",
    ),
    Mutant(
        "a response without a readable id says that there is no job",
        _SUBMIT,
        "isinstance(outcome, InvalidResponseError)",
        "False",
    ),
)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None and spec.origin is not None
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


def put_in(name: str) -> None:
    """Let this process import the core with a mutant in it."""
    assert "noukai_core" not in sys.modules, "the core has been imported already"
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    sys.meta_path.insert(0, _Finder(mutant))
