"""Settings and surroundings that are wrong end in an error that names them, and hold nobody up."""

from __future__ import annotations

import asyncio
import os
import re
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from noukai_core import (
    AsyncNoukai,
    CertificateError,
    InvalidInputError,
    JobTimeoutError,
    Noukai,
    Submission,
    TransientError,
)
from noukai_core._engine.rate_limit import shared_rate_limiter
from noukai_core._http import transports
from tests.core.raw_service import COMPLETED, RUNNING, RawService
from tests.core.scripted_server import FLOW, KEY

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient


@pytest.fixture
def service(service: RawService) -> RawService:
    """A service whose job has completed."""
    return service.on("poll", COMPLETED)


@pytest.fixture
def no_tls_context() -> Iterator[None]:
    """The process has made no TLS context yet, and forgets the one that it makes."""
    transports._tls_context.cache_clear()
    yield
    transports._tls_context.cache_clear()


@pytest.mark.parametrize("client", [Noukai, AsyncNoukai])
@pytest.mark.usefixtures("no_tls_context")
def test_certificates_that_cannot_be_read_are_named(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of certificates that is missing is an error that names the setting."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(InvalidInputError, match="SSL_CERT_FILE"):
        client(KEY, base_url="https://noukai.test/api/v1")


@pytest.mark.parametrize("client", [Noukai, AsyncNoukai])
@pytest.mark.parametrize("proxy", ["http://[bad", "gopher://proxy.test:70", "http://proxy.test:99999999"])
def test_a_proxy_that_cannot_be_used_is_named(
    client: Any, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that is no valid address is an error that names the setting."""
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(InvalidInputError, match="HTTPS_PROXY"):
        client(KEY, base_url="https://noukai.test/api/v1")


def test_no_proxy_may_name_a_port(
    make_client: MakeClient, service: RawService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`NO_PROXY=host:port` keeps the requests to that port from the proxy."""
    address = service.base_url.split("/")[2]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", address)
    job = make_client(base_url=service.base_url).flow(FLOW).attach("job-1")
    assert job.status().finished


@pytest.mark.parametrize("ending", ["?", "#", "?a=b", "#a"])
def test_a_base_url_has_no_query(ending: str) -> None:
    """An address that ends in `?` or `#` would swallow the path of each request."""
    with pytest.raises(InvalidInputError, match="base_url"):
        Noukai(KEY, base_url=f"https://noukai.test/api/v1{ending}")


def test_a_base_url_has_a_length() -> None:
    """An address of a hundred thousand characters is an error at once, and not one of some later request."""
    with pytest.raises(InvalidInputError, match="base_url"):
        Noukai(KEY, base_url="https://noukai.test/" + "a" * 100_000)


LAST_MOMENT = datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))


@pytest.mark.parametrize(
    ("argument", "act"),
    [
        ("last_sent_at", lambda flow: Submission(Submission.new().id, LAST_MOMENT)),
        ("submitted_at", lambda flow: flow.attach("job-1", submitted_at=LAST_MOMENT)),
        ("submission", lambda flow: flow.job("hello", submission="x")),
        ("submission", lambda flow: flow.find(None)),
        ("poll_interval", lambda flow: flow.attach("job-1").wait(poll_interval=1e300)),
        ("timeout_ms", lambda flow: flow.attach("job-1").wait(timeout_ms=10**400)),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(make_client: MakeClient, argument: str, act: Any) -> None:
    """Neither an OverflowError nor an AttributeError reaches the caller."""
    with pytest.raises(InvalidInputError, match=argument):
        act(make_client().flow(FLOW))


@pytest.fixture
def untrusted(tmp_path: Path) -> Iterator[str]:
    """The address of a server whose certificate nobody has signed but itself."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))
    ending = threading.Event()

    def accept() -> None:
        while not ending.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(5)
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    yield f"https://localhost:{listener.getsockname()[1]}/api/v1"
    ending.set()
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


@pytest.mark.usefixtures("no_tls_context")
def test_a_certificate_that_is_not_trusted_is_an_error_at_once(
    make_client: MakeClient, untrusted: str
) -> None:
    """It will not be trusted in five minutes either; the error says what to set."""
    flow = make_client(base_url=untrusted).flow(FLOW)
    for act in (flow.attach("job-1").wait, lambda: flow.job("hello")):
        with pytest.raises(CertificateError, match="SSL_CERT_FILE") as caught:
            act()
        assert caught.value.never_processed


def test_an_upload_ends_in_time_however_slowly_it_is_taken(key: str) -> None:
    """A server that takes a request in drops does not hold the caller for longer than the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ended = threading.Event()

        def take_in_drops() -> None:
            connection, _ = listener.accept()
            with connection:
                # Fifty megabytes would take minutes.
                while not ended.wait(0.05):
                    if select.select([connection], [], [], 0)[0] and not connection.recv(4096):
                        return

        thread = threading.Thread(target=take_in_drops)
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1"
        errors: list[Exception] = []

        def submit() -> None:
            with Noukai(key, base_url=address, timeout=0.5, recovery_timeout=0) as client:
                try:
                    client.flow(FLOW).job("x" * 50_000_000)
                except Exception as error:
                    errors.append(error)
                finally:
                    ended.set()

        sender = threading.Thread(target=submit)
        sender.start()
        in_time = ended.wait(30)
        ended.set()
        sender.join()
        thread.join()
    assert in_time
    assert errors


def test_a_short_wait_is_short(make_client: MakeClient, service: RawService) -> None:
    """The last poll of a wait is given no more time than the whole wait."""
    silence = threading.Event()

    def respond() -> Iterator[bytes]:
        silence.wait(3600)
        yield RUNNING

    service.on("poll", respond)
    job = make_client(base_url=service.base_url, timeout=3600).flow(FLOW).attach("job-1")
    with pytest.raises(JobTimeoutError, match=re.escape("timed out after 0.001 s")):
        job.wait(timeout_ms=1)
    silence.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_does_not_hang_in_a_lock_that_was_held(service: RawService) -> None:
    """A child that was forked while another thread held the lock of the rate limit can wait for a job."""
    program = f"""
import os, sys, warnings
warnings.simplefilter("ignore")
from noukai_core import Noukai, Submission
from noukai_core._engine.rate_limit import shared_rate_limiter
from noukai_core._engine.submission_registry import shared_registry
url, key = {service.base_url!r}, {KEY!r}
limiter, registry = shared_rate_limiter(url, key, 50.0), shared_registry(url, key)
submission = Submission.new()
with Noukai(key, base_url=url) as client:
    client.flow({FLOW!r}).job("hello", submission=submission)
with limiter._lock, registry._lock:
    child = os.fork()
    if child == 0:
        with Noukai(key, base_url=url) as client:
            job = client.flow({FLOW!r}).job("hello", submission=submission)
            os._exit(0 if job.wait(timeout_ms=60_000).output == "done" else 1)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert service.count("submit") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_client_that_was_used_before_a_fork_is_refused_in_the_child(service: RawService) -> None:
    """A child never reads its parent's responses: it may use only a client that the parent has not used."""
    program = f"""
import os, sys, warnings
warnings.simplefilter("ignore")
from noukai_core import InvalidInputError, Noukai
used, unused = (Noukai({KEY!r}, base_url={service.base_url!r}) for _ in range(2))
assert used.flow({FLOW!r}).attach("job-1").status().finished
child = os.fork()
if child == 0:
    assert unused.flow({FLOW!r}).attach("job-1").status().finished
    try:
        used.flow({FLOW!r}).attach("job-1").status()
    except InvalidInputError as error:
        os._exit(0 if "one client for each process" in str(error) else 1)
    os._exit(1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert used.flow({FLOW!r}).attach("job-1").status().finished
sys.exit(code)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert service.count("poll") == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_batch_that_was_begun_before_a_fork_is_refused_in_the_child(service: RawService) -> None:
    """A child does not wait for the responses of its parent's batch, and the parent gets them."""
    program = f"""
import os, signal, sys, warnings
warnings.simplefilter("ignore")
from noukai_core import InvalidInputError, Noukai
batch = Noukai({KEY!r}, base_url={service.base_url!r}).flow({FLOW!r}).jobs([42, "hello"])
assert next(batch).state == "rejected"
child = os.fork()
if child == 0:
    signal.alarm(60)  # or a child that waits would outlive the test
    try:
        next(batch)
    except InvalidInputError as error:
        os._exit(0 if "one client for each process" in str(error) else 1)
    os._exit(1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert next(batch).state == "completed"
sys.exit(code)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert service.count("submit") == 1


async def test_a_closed_async_iteration_lets_go_of_its_slot(key: str, service: RawService) -> None:
    """`aclose()` of a watch that waits for a slot gives the slot to the next."""
    service.on("poll", RUNNING)
    async with AsyncNoukai(key, base_url=service.base_url, max_polls_per_second=0.1) as client:
        job = client.flow(FLOW).attach("job-1")
        with pytest.raises(JobTimeoutError):
            await job.wait(timeout_ms=200)
        waiting = [asyncio.ensure_future(job.wait()) for _ in range(10)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    limiter = shared_rate_limiter(service.base_url, key, 0.1)
    now = time.monotonic()
    assert limiter.reserve(now) - now < 10.2


def test_a_server_that_is_down_is_still_waited_for(make_client: MakeClient) -> None:
    """A refused connection stays a transient error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1"
    with pytest.raises(TransientError):
        make_client(base_url=address, retry_timeout=0).flow(FLOW).job("hello")


def test_the_time_of_a_submission_is_kept_in_utc() -> None:
    """A time in another zone is the same moment."""
    moment = datetime(2026, 1, 1, 5, tzinfo=timezone(timedelta(hours=5)))
    kept = Submission(Submission.new().id, moment).last_sent_at
    assert kept == datetime(2026, 1, 1, tzinfo=UTC)
