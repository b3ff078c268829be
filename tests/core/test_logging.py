"""What is logged: one line per change, none per poll, and nothing twice."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.core.scripted_server import FLOW, ScriptedServer, rejection, session, state

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.core.conftest import MakeClient


@pytest.fixture(autouse=True)
def as_an_application_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Every logger speaks from INFO on, as in an orchestrator."""
    caplog.set_level(logging.INFO)


def test_one_line_for_a_change_and_none_for_a_poll(
    scripted: MakeClient, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten polls that show three states are three lines, which name job and flow."""
    server.on(
        "poll", *[state("pending")] * 4, *[state("running")] * 5, state("completed", result="secret output")
    )
    scripted().flow(FLOW).attach("job-1").wait(timeout_ms=20_000)
    assert len(server.made("poll")) == 10
    assert [record.name for record in caplog.records] == ["noukai_core"] * 3
    assert [record.levelno for record in caplog.records] == [logging.INFO] * 3
    reported = [record.getMessage() for record in caplog.records]
    assert all("job-1" in line and FLOW in line for line in reported)
    for line, word in zip(reported, ["pending", "running", "completed"], strict=True):
        assert word in line
    assert "secret output" not in "".join(reported)


def test_one_line_for_progress(
    scripted: MakeClient, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A change of progress is a line; the same progress again is none, and a huge one is shown in part."""
    server.on(
        "poll",
        state("running"),
        state("running", progress={"done": 1}),
        state("running", progress={"done": 1}),
        state("running", progress={"done": "x" * 100_000}),
        state("completed"),
    )
    scripted().flow(FLOW).attach("job-1").wait(timeout_ms=20_000)
    assert len(caplog.records) == 4
    assert '"done": 1' in caplog.records[1].getMessage()
    assert max(len(record.getMessage()) for record in caplog.records) < 1_000


def test_a_known_state_is_not_logged_again(
    scripted: MakeClient, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A wait logs only what differs from the status that its handle saw last or was made with."""
    caplog.set_level(logging.INFO, logger="noukai_core")
    server.on("poll", state("running"), state("running"), state("running"), state("completed", result="x"))
    flow = scripted().flow(FLOW)
    seen = flow.attach("job-1").status()
    assert [one.state for one in flow.attach("job-1", last_status=seen).watch()] == ["running", "completed"]
    assert [record.getMessage() for record in caplog.records] == [
        "Noukai job job-1 of acme/spelling/grade-3: running → completed"
    ]


def test_a_real_client_is_as_quiet(
    local: MakeClient, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Over real HTTP, no library logs each request: a wait of many polls is a line per state."""
    emulator.control.script("grade-3", after_polls=30)
    local(poll_interval=0.01).flow(FLOW).job(message="hello").wait(timeout_ms=20_000)
    polls = emulator.control.counts()["poll"]
    reported = [
        record for record in caplog.records if "acme" in record.getMessage() and "uvicorn" not in record.name
    ]
    assert polls >= 30
    assert {record.name for record in reported} == {"noukai_core"}
    assert 2 <= len(reported) <= 4


def test_an_unknown_state_is_reported_once(
    scripted: MakeClient, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An unknown state is a warning, once, and on one line whatever it contains."""
    server.on("poll", state("running"), *[state("paused\nERROR all is lost")] * 5, state("completed"))
    scripted().flow(FLOW).attach("job-1").wait(timeout_ms=20_000)
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "paused" in warned[0].getMessage()
    assert not any("\n" in record.getMessage() for record in caplog.records)


def test_trouble_is_reported_once_and_so_is_its_end(
    scripted: MakeClient, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Many faults in a row are one warning with job and server's words, and one line when it is over."""
    server.on(
        "poll", state("running"), *[rejection(503, "OVERLOADED")] * 8, state("running"), state("completed")
    )
    scripted().flow(FLOW).attach("job-1").wait(timeout_ms=20_000)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "OVERLOADED" in warned[0]
    assert "job-1" in warned[0]
    assert len(caplog.records) == 4


def test_the_404_race_is_no_trouble(
    scripted: MakeClient, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that no worker has started yet causes no warning."""
    server.on("poll", *[rejection(404, "JOB_NOT_FOUND")] * 5, state("completed"))
    scripted().flow(FLOW).job(message="hello").wait(timeout_ms=20_000)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_submission_that_was_looked_up_is_reported(
    scripted: MakeClient, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The log shows that a response was lost and which job was found."""
    server.on("submit", rejection(502)).on("session", session("job-7"))
    scripted().flow(FLOW).job(message="the text of a child")
    reported = " ".join(record.getMessage() for record in caplog.records)
    assert "job-7" in reported
    assert FLOW in reported
    assert "the text of a child" not in reported
    assert any(record.levelno == logging.WARNING for record in caplog.records)


def test_the_library_sets_up_no_logging() -> None:
    """A library adds no handler and no level; that is the application's."""
    logger = logging.getLogger("noukai_core")
    assert all(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    assert logger.propagate
