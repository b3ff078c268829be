"""Finding of a review: the limit of a deferrable batch whose worker Airflow has replaced."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from noukai_airflow.exceptions import NoukaiException
from noukai_airflow._batch_run import BatchRun
from tests.airflow.test_batch_interrupted import operator, states

if TYPE_CHECKING:
    from pathlib import Path

    from noukai_core.emulator import Emulator

pytestmark = pytest.mark.usefixtures("connected")


def test_a_limit_that_has_passed_at_the_end_of_a_segment(
    context: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A replaced worker that would defer after `execution_timeout` leaves the jobs to the next try."""
    emulator.control.script("flow", outcome="never")
    task = operator(
        output_path=f"file://{tmp_path}", deferrable=True, execution_timeout=timedelta(hours=1), timeout=None
    )
    wait = BatchRun._wait_in_triggerer

    def replaced(self: Any, thread: Any, record: Any, header: Any) -> Any:
        self._log.write_header({**self._log.header(), "try_number": 2})
        assert self._is_replaced()
        return wait(self, thread, record, {**header, "until": time.time() - 1})

    monkeypatch.setattr(BatchRun, "_wait_in_triggerer", replaced)
    with suppress(NoukaiException, TaskDeferred):
        task.execute(context)
    assert "cancelled" not in states(emulator)
