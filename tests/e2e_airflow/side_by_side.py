"""Runs the tests of a module at the same time, since each of them mostly waits for its own run.

A module asks for it with `pytestmark = pytest.mark.side_by_side`. Its tests take nothing but parameters and
fixtures of the module or the session, and every test that is skipped says so with a mark.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest

_ends = pytest.StashKey[Future[None]]()


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark."""
    config.addinivalue_line("markers", "side_by_side: run the tests of this module at the same time")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Begin all tests of the module with the first one; each test's turn is to wait for its end."""
    if not _runs_beside(pyfuncitem):
        return None
    if _ends not in pyfuncitem.stash:
        for item in pyfuncitem.session.items:
            if isinstance(item, pytest.Function) and item.module is pyfuncitem.module and _runs_beside(item):
                item.stash[_ends] = _begin(item, pyfuncitem.funcargs)
    pyfuncitem.stash[_ends].result()
    return True


def _runs_beside(item: pytest.Function) -> bool:
    skipped = any(mark.args[0] for mark in item.iter_markers("skipif"))
    return item.get_closest_marker("side_by_side") is not None and not skipped


def _begin(item: pytest.Function, fixtures: dict[str, Any]) -> Future[None]:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    arguments = {
        name: parameters[name] if name in parameters else fixtures[name]
        for name in item.function.__code__.co_varnames[: item.function.__code__.co_argcount]
    }
    end: Future[None] = Future()

    def run() -> None:
        try:
            item.function(**arguments)
        except BaseException as error:
            end.set_exception(error)
        else:
            end.set_result(None)

    threading.Thread(target=run, name=item.name, daemon=True).start()
    return end
