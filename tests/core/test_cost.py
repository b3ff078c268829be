"""What a client and an import cost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest

from noukai_core import Noukai
from tests.core.scripted_server import KEY

# aiohttp creates two itself when it is imported.
LIST_CONTEXTS = """
import aiohttp, gc, ssl
from noukai_core import AsyncNoukai, Noukai

def contexts():
    return [thing for thing in gc.get_objects() if isinstance(thing, ssl.SSLContext)]

before = contexts()
kinds = [Noukai, AsyncNoukai] * 20
clients = [kind("nk_test", base_url="https://noukai.test") for kind in kinds]
for context in contexts():
    if not any(context is other for other in before):
        print(context.verify_mode.name, context.check_hostname)
"""


def test_a_process_makes_one_tls_context() -> None:
    """Forty clients of both kinds share one TLS context, which checks certificates and names."""
    assert run_python(LIST_CONTEXTS).splitlines() == ["CERT_REQUIRED True"]


def test_a_further_client_costs_next_to_nothing() -> None:
    """After the first client of a process a further one costs a small part of making one TLS context."""
    Noukai(KEY, base_url="https://noukai.test").close()

    def best_of(act: Any, times: int) -> float:
        spent = []
        for _ in range(times):
            begin = time.perf_counter()
            act()
            spent.append(time.perf_counter() - begin)
        return min(spent)

    context = best_of(httpx.create_ssl_context, 3)
    client = best_of(lambda: Noukai(KEY, base_url="https://noukai.test"), 30)
    assert client < context / 5


@pytest.mark.parametrize(
    "name", ["noukai_core", "noukai_core.errors", "noukai_core._validation", "noukai_core._engine.schedule"]
)
def test_the_import_is_light(name: str) -> None:
    """A DAG file that names an operator pays neither for httpx nor for pydantic through this package."""
    loaded = run_python(f"import sys, {name}; print(*{{'httpx', 'pydantic'}} & set(sys.modules))")
    assert loaded == ""


def test_bad_input_is_checked_without_the_heavy_libraries() -> None:
    """The errors can be caught where nothing heavy was loaded."""
    code = (
        "import sys; from noukai_core import JobFailedError; print(*{'httpx', 'pydantic'} & set(sys.modules))"
    )
    assert run_python(code) == ""


def run_python(code: str) -> str:
    """Runs code in a fresh interpreter, and returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NOUKAI")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
