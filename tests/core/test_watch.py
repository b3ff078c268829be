"""Watching a job: what is new is shown, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from noukai_core import JobCancelled, JobFailed, JobWaitTimeout, NoukaiError
from tests.core.wire import FLOW, Wire, refusal, state

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient


def test_a_watch_shows_what_is_new(scripted: MakeClient, wire: Wire) -> None:
    """The first look and each change of state or progress is yielded, once; the last one is final."""
    half, full = {"done": 1, "of": 2}, {"done": 2, "of": 2}
    wire.on(
        "poll",
        state("started"),
        state("queued"),
        state("running"),
        refusal(503),
        state("running"),
        state("running", progress=half),
        state("running", progress=half),
        state("running", progress=full),
        state("completed", progress=full, result="x"),
    )
    seen = list(scripted().flow(FLOW).attach("job-1").watch(timeout_ms=20_000))
    assert [(status.state, status.progress) for status in seen] == [
        ("pending", None),
        ("running", None),
        ("running", half),
        ("running", full),
        ("completed", full),
    ]
    assert seen[-1].outcome().output == "x"


@pytest.mark.parametrize("end, kind", [("failed", JobFailed), ("cancelled", JobCancelled)])
def test_a_watch_yields_a_bad_end(
    scripted: MakeClient, wire: Wire, end: str, kind: type[NoukaiError]
) -> None:
    """A watch does not raise for a job that failed or was cancelled; the outcome of its last status does."""
    wire.on("poll", state("running"), state(end, error="why"))
    *_, last = scripted().flow(FLOW).attach("job-1").watch(timeout_ms=20_000)
    assert last.state == end
    with pytest.raises(kind):
        last.outcome()


def test_a_watch_ends_at_its_deadline(scripted: MakeClient, wire: Wire) -> None:
    """A watch that runs out raises as a wait does, after what it showed."""
    wire.on("poll", state("running"))
    seen: list[Any] = []
    with pytest.raises(JobWaitTimeout):
        seen.extend(scripted().flow(FLOW).attach("job-1").watch(timeout_ms=100))
    assert [status.state for status in seen] == ["running"]


def test_a_watch_can_be_left(scripted: MakeClient, wire: Wire) -> None:
    """Leaving a watch early makes no further look, and the client goes on."""
    wire.on("poll", state("running"))
    job = scripted().flow(FLOW).attach("job-1")
    watch = job.watch()
    assert next(watch).state == "running"
    watch.close()
    assert len(wire.made("poll")) == 1
    assert job.status().state == "running"


def test_an_unfinished_status_has_no_outcome(scripted: MakeClient, wire: Wire) -> None:
    """Asking a running job's status for its outcome is refused, with the state in the message."""
    wire.on("poll", state("running"))
    with pytest.raises(NoukaiError, match="running"):
        scripted().flow(FLOW).attach("job-1").status().outcome()
