"""The server of the benchmarks over TLS: a local Noukai, and the responses of dbt Cloud and Databricks.

    peer_services.py FOLDER

It speaks HTTPS, as both peers know no other, with a certificate that is made in the folder. One line on
standard output tells, as JSON, the address and the file with the certificates to trust.
"""

from __future__ import annotations

import ipaddress
import json
import signal
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from noukai_core.emulator import Emulator

HOST = "127.0.0.1"
DBT_STARTING, DBT_RUNNING, DBT_SUCCESS = 2, 3, 10
STARTING_SHARE = 0.1  # so long a job of the local Noukai is pending


@dataclass
class Run:
    """A job of either peer's service."""

    number: int
    began: float
    seconds: float
    polls: int = 0

    def poll(self) -> float:
        """Return how much of the run is done, from 0 to 1."""
        self.polls += 1
        return min((time.time() - self.began) / self.seconds, 1.0)


class PeerServices:
    """What the peers' loops ask while they wait, and how a benchmark begins a job and counts."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.routes = [
            Route("/api/v2/accounts/{account}/runs/{number:int}/", self.dbt_run),
            Route("/api/{version}/jobs/runs/get", self.databricks_run),
            Route("/benchmark/runs", self.begin, methods=["POST"]),
            Route("/benchmark/runs/{number:int}", self.reported),
        ]

    async def begin(self, request: Request) -> JSONResponse:
        run = Run(len(self.runs), time.time(), (await request.json())["seconds"])
        self.runs.append(run)
        return JSONResponse({"number": run.number})

    async def reported(self, request: Request) -> JSONResponse:
        run = self.runs[request.path_params["number"]]
        return JSONResponse({"ended": run.began + run.seconds, "requests": run.polls})

    async def dbt_run(self, request: Request) -> JSONResponse:
        run = self.runs[request.path_params["number"]]
        done = run.poll()
        status = DBT_SUCCESS if done == 1 else DBT_RUNNING if done >= STARTING_SHARE else DBT_STARTING
        data = {"id": run.number, "status": status, "is_complete": done == 1}
        return JSONResponse({"data": data, "status": {"code": 200, "is_success": True}})

    async def databricks_run(self, request: Request) -> JSONResponse:
        # Prefect's integration requests with a query, Airflow's provider with a body.
        query = request.query_params or await request.json()
        run = self.runs[int(query["run_id"])]
        done = run.poll()
        state = {"life_cycle_state": "PENDING" if done < STARTING_SHARE else "RUNNING", "state_message": ""}
        if done == 1:
            state |= {"life_cycle_state": "TERMINATED", "result_state": "SUCCESS"}
        of_both = {"run_page_url": f"https://{HOST}/run/{run.number}", "state": state}
        task = {"run_id": run.number + 1_000_000, "task_key": "only", **of_both}
        return JSONResponse({"run_id": run.number, "run_name": "benchmark", "tasks": [task], **of_both})


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a key with its certificate for this machine; return their file, and one of all trusted ones."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "benchmark")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    own = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    own.write_bytes(private + certificate)
    # A new client also reads the usual certificates: that is part of the cost of a new client for each poll.
    trusted = folder / "certificates.pem"
    trusted.write_bytes(Path(certifi.where()).read_bytes() + certificate)
    return own, trusted


def main(folder: Path) -> None:
    """Serve until SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    own, trusted = make_certificate(folder)
    emulator = Emulator(host=HOST, tls_cert=own, tls_key=own)
    emulator.app.routes.extend(PeerServices().routes)
    with emulator:
        port = httpx.URL(emulator.base_url).port
        print(json.dumps({"address": f"{HOST}:{port}", "certificates": str(trusted)}), flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
