"""The emulator as a program: `python -m noukai_core.emulator`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_END = {signal.SIGINT, signal.SIGTERM}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit code."""
    options = _parser().parse_args(arguments)
    # Blocked before any thread starts, so that a signal ends the wait below and never interrupts the server.
    signal.pthread_sigmask(signal.SIG_BLOCK, _END)
    try:
        from noukai_core.emulator import Emulator

        emulator = Emulator(
            options.script,
            state_file=options.state_file,
            host=options.host,
            port=options.port,
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
            honour_idempotency_key=options.honour_idempotency_key,
        )
        with emulator:
            print(f"Noukai emulator: {emulator.base_url}", flush=True)
            signal.sigwait(_END)
    except (ImportError, OSError, ValueError) as error:
        print(f"noukai_core.emulator: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m noukai_core.emulator",
        description="A local Noukai over real HTTP. Every flow exists; a job completes after about a second.",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: this machine only)"
    )
    parser.add_argument(
        "--port", type=_port, default=8090, help="the port; 0 picks a free one (default: 8090)"
    )
    parser.add_argument(
        "--script", type=Path, metavar="FILE", help="a JSON file that sets how jobs behave, by flow"
    )
    parser.add_argument(
        "--state-file", type=Path, metavar="FILE", help="a file that keeps the jobs across restarts"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="a certificate (PEM); serves HTTPS")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="the certificate's key (PEM)")
    parser.add_argument(
        "--honour-idempotency-key",
        action="store_true",
        help="return the first job for a second submission with the same Idempotency-Key",
    )
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError(text)
    return port


if __name__ == "__main__":
    sys.exit(main())
