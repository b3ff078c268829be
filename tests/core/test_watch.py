"""Watching a job: what is new is shown, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from noukai_core import JobCancelledError, JobFailedError, JobTimeoutError, NoukaiError
from tests.core.scripted_server import FLOW, ScriptedServer, rejection, state

if TYPE_CHECKING:
    from tests.core.conftest import Clock, MakeClient


def test_a_watch_shows_what_is_new(scripted: MakeClient, server: ScriptedServer) -> None:
    """The first poll and each change of state or progress is yielded, once; the last one is final."""
    half, full = {"done": 1, "of": 2}, {"done": 2, "of": 2}
    server.on(
        "poll",
        state("started"),
        state("queued"),
        state("running"),
        rejection(503),
        state("running"),
        state("running", progress=half),
        state("running", progress=half),
        state("running", progress=full),
        state("completed", progress=full, result="x"),
    )
    seen = list(scripted().flow(FLOW).attach("job-1").watch(timeout=20))
    assert [(status.state, status.progress) for status in seen] == [
        ("pending", None),
        ("running", None),
        ("running", half),
        ("running", full),
        ("completed", full),
    ]
    assert seen[-1].result_or_raise().output == "x"


@pytest.mark.parametrize(("end", "kind"), [("failed", JobFailedError), ("cancelled", JobCancelledError)])
def test_a_watch_yields_a_bad_end(
    scripted: MakeClient, server: ScriptedServer, end: str, kind: type[NoukaiError]
) -> None:
    """A watch does not raise for a job that failed or was cancelled; the outcome of its last status does."""
    server.on("poll", state("running"), state(end, error="why"))
    *_, last = scripted().flow(FLOW).attach("job-1").watch(timeout=20)
    assert last.state == end
    with pytest.raises(kind):
        last.result_or_raise()


def test_a_watch_ends_at_its_deadline(scripted: MakeClient, server: ScriptedServer, clock: Clock) -> None:
    """A watch that runs out raises as a wait does, after what it showed."""
    server.on("poll", state("running"), clock.after(60, state("running")))
    seen: list[Any] = []
    with pytest.raises(JobTimeoutError):
        seen.extend(scripted().flow(FLOW).attach("job-1").watch(timeout=60))
    assert [status.state for status in seen] == ["running"]


def test_a_watch_can_be_left(scripted: MakeClient, server: ScriptedServer) -> None:
    """Leaving a watch early makes no further poll, and the client remains usable."""
    server.on("poll", state("running"))
    job = scripted().flow(FLOW).attach("job-1")
    watch = job.watch()
    assert next(watch).state == "running"
    watch.close()
    assert len(server.made("poll")) == 1
    assert job.status().state == "running"


def test_an_unfinished_status_has_no_outcome(scripted: MakeClient, server: ScriptedServer) -> None:
    """A running job's status raises an error when its result is requested, with the state in the message."""
    server.on("poll", state("running"))
    with pytest.raises(NoukaiError, match="running"):
        scripted().flow(FLOW).attach("job-1").status().result_or_raise()
