"""The floor of the branches that tests reach."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from devtools.branches import main


def report(folder: Path, **percentages: int) -> str:
    """Write a report in which each package has two files of a hundred branches."""
    files = {
        f"{'core/' if package == 'noukai_core' else ''}{package}/{number}.py": {
            "summary": {"covered_branches": covered, "num_branches": 100}
        }
        for package, percentage in percentages.items()
        for number, covered in enumerate((percentage - 1, percentage + 1))
    }
    path = folder / "report.json"
    path.write_text(json.dumps({"files": files}))
    return str(path)


def test_each_package_is_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every package has to reach the floor; another one does not make up for it."""
    assert main(report(tmp_path, noukai_core=95, noukai_airflow=99, noukai_prefect=96)) == 0
    assert main(report(tmp_path, noukai_core=99, noukai_airflow=99, noukai_prefect=94)) == 1
    assert "noukai_prefect: 94.00 % of branches" in capsys.readouterr().out


def test_a_package_that_was_not_measured(tmp_path: Path) -> None:
    """A suite that did not run is no full coverage."""
    assert main(report(tmp_path, noukai_core=99, noukai_prefect=99)) == 1
