"""Hundreds of jobs in `run_noukai_jobs` on a real Prefect, while a fifth of all requests meet a fault."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from devtools.prefect_server import LocalPrefect
from tests.faults import scale
from tests.faults.balance import Report, check_balance, check_share
from tests.faults.jobs import FLOW, plans
from tests.faults.kinds import KINDS, REFUSED, switch_on
from tests.faults.noukai import NoukaiProcess

ROOT = Path(__file__).parents[3]
KEY = "nk_test_faultspr_0123456789abcdef0123456789abcdef"

# A lost submission is sent again after a minute, and may be lost again.
RUN_SECONDS = 600.0


@pytest.mark.timeout(RUN_SECONDS + 200)
def test_all_kinds_of_faults(noukai: NoukaiProcess, tmp_path: Path) -> None:
    """With every kind of fault among the requests of a task's jobs, no job is lost or duplicated."""
    wanted = plans(scale.JOBS)
    inputs = [{"message": plan.message, "parameters": plan.parameters} for plan in wanted]
    with LocalPrefect(
        Path(sys.executable).parent, tmp_path, environment={"PYTHONPATH": str(ROOT)}
    ) as prefect:
        prefect.save_blocks({"default": ("NoukaiCredentials", {"api_key": KEY, "base_url": noukai.base_url})})
        prefect.serve(f"{Path(__file__).parent / 'flows' / 'under_faults.py'}:under_faults")
        switch_on(noukai.control, *(kind for kind in KINDS if kind != REFUSED))
        run = prefect.run("under-faults/local", {"flow": FLOW, "inputs": inputs})
        assert prefect.wait_for(run, timeout=RUN_SECONDS) == "Completed"
        outcomes = prefect.result(run)
    reported = [
        Report(plan.message, outcome["job_id"], outcome["state"])
        for plan, outcome in zip(wanted, outcomes, strict=True)
    ]
    check_balance(noukai.control.jobs(), (plan.message for plan in wanted), reported)
    check_share(noukai.control.requests(), scale.SHARE)
