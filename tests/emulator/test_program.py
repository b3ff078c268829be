"""`python -m noukai_core.emulator` as people start it."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from noukai_core.emulator import EmulatorControl

FLOW = "seq/acme/spelling/grade-3"
HEADERS = {"Authorization": "Bearer nk_test_x"}
READY = re.compile(r"Noukai emulator: (https?://127\.0\.0\.1:\d+/api/v1)\n")


class Program:
    """One run of the program, with the line that it printed when it was ready."""

    def __init__(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", "noukai_core.emulator", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()

    @property
    def base_url(self) -> str:
        found = READY.fullmatch(self.line)
        assert found, (self.line, self.process.stderr.read() if self.process.stderr else "")
        return found[1]

    def end(self, by: signal.Signals) -> tuple[int, str, str]:
        self.process.send_signal(by)
        rest, errors = self.process.communicate(timeout=20)
        return self.process.returncode, rest, errors


Start = Callable[..., Program]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the program on a free port, and ends what is still running after the test."""
    running: list[Program] = []

    def begin(*arguments: str | Path) -> Program:
        running.append(Program("--port", "0", *arguments))
        return running[-1]

    yield begin
    for program in running:
        if program.process.poll() is None:
            program.process.kill()
        program.process.communicate()


def submit(base_url: str) -> str:
    response = httpx.post(
        f"{base_url}/{FLOW}/jobs", json={"message": "hello"}, headers=HEADERS, trust_env=False
    )
    return str(response.json()["executionId"])


def poll(base_url: str, job_id: str) -> dict[str, object]:
    response = httpx.get(f"{base_url}/{FLOW}/jobs/{job_id}", headers=HEADERS, trust_env=False)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_it_says_where_it_listens(start: Start) -> None:
    """The line comes when a request can come, and nothing else is printed."""
    program = start()
    assert poll(program.base_url, submit(program.base_url))["status"] in ("pending", "running", "completed")
    assert program.end(signal.SIGTERM) == (0, "", "")


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_and_promptly(start: Start, by: signal.Signals) -> None:
    """Even with an open stream and a hanging request: exit code 0, no traceback, no wait for the request."""
    program = start()
    with (
        httpx.Client(headers=HEADERS, trust_env=False) as client,
        EmulatorControl(program.base_url) as control,
    ):
        control.script("grade-3", outcome="never")
        job_id = submit(program.base_url)
        with client.stream("GET", f"{program.base_url}/{FLOW}/runs/{job_id}/trace/stream") as stream:
            control.fault("slow", on="poll", seconds=600)
            with pytest.raises(httpx.ReadTimeout):
                client.get(f"{program.base_url}/{FLOW}/jobs/{job_id}", timeout=0.2)
            assert program.end(by) == (0, "", "")
            stream.read()


def test_it_ends_in_the_background_of_a_driver(start: Start) -> None:
    """A shell starts background jobs with SIGINT ignored; SIGINT ends the emulator nevertheless."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        program = start()
        assert program.base_url
    finally:
        signal.signal(signal.SIGINT, before)
    assert program.end(signal.SIGINT)[0] == 0


def test_a_script_file(start: Start, tmp_path: Path) -> None:
    """The jobs behave as the file specifies."""
    file = tmp_path / "script.json"
    file.write_text(
        json.dumps({"grade-3": {"outcome": "failed", "after_polls": 1, "error": "no words left"}})
    )
    program = start("--script", file)
    assert poll(program.base_url, submit(program.base_url))["error"] == "no words left"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_state_file_outlives_the_program(start: Start, tmp_path: Path, by: signal.Signals) -> None:
    """However the program ends, its jobs and their ends are there after a restart."""
    state_file, script = tmp_path / "jobs.jsonl", tmp_path / "script.json"
    script.write_text('{"grade-3": {"outcome": "never"}}')
    program = start("--state-file", state_file, "--script", script)
    jobs = [submit(program.base_url) for _ in range(20)]
    cancel = f"{program.base_url}/{FLOW}/jobs/{jobs[0]}/cancel"
    assert httpx.post(cancel, headers=HEADERS, trust_env=False).status_code == 202
    program.end(by)
    again = start("--state-file", state_file, "--script", script)
    with EmulatorControl(again.base_url) as control:
        assert [job["id"] for job in control.jobs()] == jobs
    assert [poll(again.base_url, job_id)["status"] for job_id in jobs[:2]] == ["cancelled", "running"]


def test_a_restart_on_the_same_port(start: Start) -> None:
    """A client finds the emulator again where it was, right after it ended."""
    program = start()
    port = str(httpx.URL(program.base_url).port)
    submit(program.base_url)
    program.end(signal.SIGKILL)
    assert start("--port", port).base_url == program.base_url


def test_https(start: Start, tmp_path: Path) -> None:
    """With a certificate it serves HTTPS, the control API too."""
    cert, key = certificate(tmp_path)
    program = start("--tls-cert", cert, "--tls-key", key)
    assert program.base_url.startswith("https://")
    trusting = ssl.create_default_context(cafile=cert)
    with httpx.Client(verify=trusting, headers=HEADERS, trust_env=False) as client:
        assert client.get(f"{program.base_url}/keys/verify").status_code == 200
    with EmulatorControl(program.base_url, verify=trusting) as control:
        assert control.counts()["verify"] == 1


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, for this test alone."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "emulator")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--script", "/nowhere/script.json"], "/nowhere/script.json"),
        (["--script", "{script}"], "outcome='lost'"),
        (["--state-file", "{script}"], "is not a state file"),
        (["--port", "70000"], "70000"),
        (["--tls-cert", "/nowhere/cert.pem"], "No such file"),
        (["--tls-cert", "{script}"], "PEM"),
        (["--host", "256.0.0.1"], "256.0.0.1|Name or service|not known|resolution"),
    ],
)
def test_what_it_cannot_start_with(start: Start, tmp_path: Path, arguments: list[str], words: str) -> None:
    """Exit code 2 and one message, without a traceback."""
    (tmp_path / "script").write_text('{"grade-3": {"outcome": "lost"}}\n')
    program = start(*(argument.format(script=tmp_path / "script") for argument in arguments))
    rest, errors = program.process.communicate(timeout=20)
    assert (program.process.returncode, program.line, rest) == (2, "", "")
    assert re.search(words, errors)
    assert "Traceback" not in errors


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_its_libraries_it_says_what_to_install(tmp_path: Path, missing: str) -> None:
    """The message names the extra, as a program and as an import; `EmulatorControl` needs neither."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{missing!r}] = None\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    advice = 'pip install "noukai-orchestration[emulator]"'

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    program = run("-m", "noukai_core.emulator", "--port", "0")
    assert program.returncode == 2
    assert advice in program.stderr
    assert "Traceback" not in program.stderr
    assert advice in run("-c", "from noukai_core.emulator import Emulator").stderr
    assert run("-c", "from noukai_core.emulator import EmulatorControl").returncode == 0
