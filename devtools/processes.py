"""The processes of a local server: each in a separate group, and none of them left behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_STOP_SECONDS = 15.0

LONGEST_WAIT = 300.0
"""Seconds to wait for an event. It is no promise: it only ends a run in which the event never comes."""

IDLE_CONNECTIONS = 0
"""How many idle connections to a server are kept. uvicorn closes one after five seconds, even if a request
has come on it meanwhile: a server that a busy machine holds up for so long resets that request.
"""

# Below those that systems give to connections and to whoever asks for any port: a server binds its port
# seconds after it was chosen.
_PORTS = range(20_000, 32_000)

# Ends what is left of the processes when the one that started them is gone, however it went, and removes its
# folders.
_WARDEN = """
import os, shutil, signal, sys
left = set()
for line in sys.stdin:
    sign, name = line[0], line[1:].rstrip()
    left.add(name) if sign == "+" else left.discard(name)
groups = {int(name) for name in left if name.isdigit()}
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
for pid in map(int, filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ())):
    try:
        if os.getsid(pid) in groups:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
for folder in left - set(map(str, groups)):
    shutil.rmtree(folder, ignore_errors=True)
"""


class ServerError(RuntimeError):
    """A local server did not do what was requested."""


class Warden:
    """A process that outlives this one by a moment, and ends or removes what this one has left behind.

    It lives as long as there is something to watch.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._watched: set[int | Path] = set()
        self._lock = threading.Lock()

    def watch(self, what: int | Path) -> None:
        """Have a process group ended, or a folder removed, when this process is gone."""
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _WARDEN],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    text=True,
                    bufsize=1,
                )
            self._watched.add(what)
            self._signal(f"+{what}")

    def forget(self, what: int | Path) -> None:
        """The group has ended, or the folder is removed."""
        with self._lock:
            if self._process is None or what not in self._watched:
                return
            self._watched.discard(what)
            self._signal(f"-{what}")
            if not self._watched:
                self._process.communicate()
                self._process = None

    def _signal(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(line + "\n")


_warden = Warden()


class Component:
    """One process, with the children that it starts, in a separate process group."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._retired = False
        self._starting = threading.Lock()

    @property
    def pid(self) -> int:
        """The process id; also the id of the group."""
        if self._process is None:
            raise ServerError(f"{self.name} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process itself is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process. It is not waited for."""
        with self._starting, self.log.open("ab") as output:
            if self._retired:
                raise ServerError(f"{self.name} is not started any more")
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            _warden.watch(self._process.pid)

    def retire(self) -> None:
        """Prevent any later start, even by a thread that is about to start it."""
        with self._starting:
            self._retired = True

    def terminate(self, timeout: float = _STOP_SECONDS) -> None:
        """End the process as a deployment would, and kill the rest of its group."""
        self._end(signal.SIGTERM, timeout)

    def ask_to_stop(self) -> None:
        """Begin to end the process, without waiting for it."""
        if self.running:
            self.resume()
            self._process_signal(signal.SIGINT)

    def stop(self, timeout: float = _STOP_SECONDS) -> None:
        """Wait for the end after `ask_to_stop`, and kill what is left of the process and its children."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
            self.kill()

    def kill(self) -> None:
        """End the process and its children at once, as the kernel would when memory runs out."""
        self._end(signal.SIGKILL, _STOP_SECONDS)

    def stall(self) -> None:
        """Stop the process and its children from running, until `resume`."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a stalled process continue."""
        self._signal_group(signal.SIGCONT)

    def restart(self) -> None:
        """Start again after an end."""
        if self.running:
            self.terminate()
        self.start()

    def _end(self, first: signal.Signals, timeout: float) -> None:
        if self._process is None:
            return
        if self.running:
            self.resume()
            self._process_signal(first)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self._signal_group(signal.SIGKILL)
        # Airflow puts each task into a separate process group; the session is the same.
        for pid in _session(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(_STOP_SECONDS)
        _warden.forget(self._process.pid)

    def _process_signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def wait_until(
    condition: Callable[[], T],
    what: str,
    timeout: float = LONGEST_WAIT,
    *,
    pause: float = 0.1,
    alive: Callable[[], None] | None = None,
) -> T:
    """Check until the condition holds, and return its value."""
    deadline = time.monotonic() + timeout
    while True:
        if found := condition():
            return found
        if alive is not None:
            alive()
        if time.monotonic() > deadline:
            raise ServerError(f"waited {timeout:g} s without success for {what}")
        time.sleep(pause)


def make_folder(prefix: str) -> Path:
    """Create a folder, in memory if possible; it is removed with this process or by `remove_folder`."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    _warden.watch(folder)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a folder that `make_folder` made."""
    shutil.rmtree(folder, ignore_errors=True)
    _warden.forget(folder)


def free_port() -> int:
    """Return a port that nothing listens on, and that the system gives to nobody who asks for any port."""
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def _session(leader: int) -> Iterator[int]:
    """Name the processes of a session, on systems that have /proc."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(int(entry.name)) == leader:
                yield int(entry.name)


def descendants(pid: int) -> Iterator[int]:
    """Name the processes below one, on systems that have /proc."""
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (thread / "children").read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            yield child
            yield from descendants(child)


def title(pid: int) -> str:
    """Return what a process calls itself, on systems that have /proc; nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
