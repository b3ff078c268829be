"""How large a run is, and the seed that it can be repeated with.

`FAULT_SEED=7` repeats the faults of a run that printed 7. `FAULTS=full` runs everything at full size, as
`make test-faults` does; without it a suite runs in the time that `make test` has for it.
"""

from __future__ import annotations

import os
import random

# Kept in the environment, so that the processes of pytest-xdist draw the same.
SEED = int(os.environ.setdefault("FAULT_SEED", str(random.SystemRandom().randrange(1_000_000))))

FULL = os.environ.get("FAULTS") == "full"

JOBS = 1000 if FULL else 300
"""Jobs of a run in which the faults are mixed."""

JOBS_OF_ONE_KIND = JOBS if FULL else 100
"""Jobs of a run that meets one kind of fault."""

SHARE = 0.2
"""How many of all requests meet a fault."""
