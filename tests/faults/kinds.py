"""The eight kinds of fault, as passed to the local Noukai.

A refused connection is none of them: it needs a port without a listener. See `core/refusing.py`.
"""

from __future__ import annotations

from typing import Any

from noukai_core.emulator import EmulatorControl
from tests.faults import scale

REQUEST_SECONDS = 2.0
"""How long a client of these runs waits for a response."""

Part = dict[str, Any]

REFUSED = "connection refused"
RACE = "the 404 race"

KINDS: dict[str, list[Part]] = {
    REFUSED: [],
    "reset before": [{"kind": "drop_before", "reset": True}],
    "reset after": [{"kind": "drop_after", "reset": True}],
    "timeout": [{"kind": "slow", "seconds": 2 * REQUEST_SECONDS}],
    "429": [
        {"kind": "status", "status": 429, "retry_after": 1},
        {"kind": "status", "status": 429, "retry_after": "http-date", "seconds": 1},
    ],
    "5xx": [
        {"kind": "status", "status": status, "body": body, "takes_effect": takes_effect}
        for status in (500, 502, 503, 504)
        for body in ("json", "html")
        for takes_effect in (False, True)
    ],
    "truncated": [{"kind": "truncated"}],
    RACE: [{"kind": "race", "seconds": seconds} for seconds in (2, 5, 10)],
}


def switch_on(control: EmulatorControl, *kinds: str, share: float = scale.SHARE) -> None:
    """Let so many of all requests meet a fault, and each of the kinds be as likely as the others."""
    parts = [(part, len(KINDS[kind])) for kind in kinds for part in KINDS[kind]]
    if not parts:
        return
    # Drawn evenly from a list, in which a kind of two parts comes as often as a kind of sixteen.
    most = max(number for _, number in parts)
    drawn = [part for part, number in parts for _ in range(most // number)]
    control.fault("mixed", on=None, probability=share, seed=scale.SEED, of=drawn)
