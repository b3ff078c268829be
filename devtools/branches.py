"""Hold the share of branches that the tests reach, package by package: `make coverage`.

    python -m devtools.branches report.json

The report is what `coverage json` writes. The floor of coverage itself mixes lines and branches, of which the
lines are many more. Needs nothing but Python.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLOOR = 95.0
"""The percentage of branches that the tests of each package have to reach."""


def reached(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the percentage of branches that were reached, by the package."""
    counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for file, found in report["files"].items():
        package = next(part for part in Path(file).parts if part.startswith("noukai_"))
        counts[package][0] += found["summary"]["covered_branches"]
        counts[package][1] += found["summary"]["num_branches"]
    return {package: 100.0 * covered / of for package, (covered, of) in sorted(counts.items())}


def main(path: str) -> int:
    """Print the percentages, and return 1 if one is too low or a package was not measured."""
    found = reached(json.loads(Path(path).read_text()))
    for package, percentage in found.items():
        print(f"{package}: {percentage:.2f} % of branches")
    if len(found) == 3 and min(found.values()) >= FLOOR:
        return 0
    print(f"Each of the three packages has to reach {FLOOR:g} %.")
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
