"""The examples in the docstrings of the public API run as they stand."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator

import pytest

import noukai_core

MODULES = sorted({getattr(noukai_core, name).__module__ for name in noukai_core.__all__})


def examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        for found in finder.find(importlib.import_module(name), name):
            if found.examples:
                yield found


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_an_example_of_the_documentation_runs(example: doctest.DocTest) -> None:
    """What the documentation shows is what happens."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    result = runner.run(example, out=report.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(report)


def test_both_clients_have_an_example() -> None:
    """The two classes that everybody begins with show how."""
    names = {example.name for example in examples()}
    assert {"noukai_core.client.Noukai", "noukai_core.async_client.AsyncNoukai"} <= names


@pytest.mark.parametrize("name", [name for name in noukai_core.__all__ if name != "JobInput"])  # an alias
def test_every_public_name_is_documented(name: str) -> None:
    """Each public class says what it is, and each public method what it does."""
    kind = getattr(noukai_core, name)
    undocumented = [
        member
        for member, value in vars(kind).items()
        if not member.startswith("_")
        and (callable(value) or isinstance(value, property))
        and not value.__doc__
    ]
    assert kind.__doc__
    assert kind.__module__.startswith("noukai_core")
    assert undocumented == []
