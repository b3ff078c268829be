"""The key stays secret: nothing that is shown, raised, logged or stored contains it."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from noukai_core import AsyncNoukai, InvalidInputError, JobFailedError, NoukaiError
from noukai_core._validation import without_keys
from tests.core.scripted_server import FLOW, HttpResponse, ScriptedServer, rejection, respond, session, state

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator
    from tests.core.conftest import MakeClient

MARK = "MARKED9secret7value"
KEYS = [f"nk_live_12345678_{MARK}", f"nk_live.12-34/56+78={MARK}"]


class Records(logging.Handler):
    """Keeps every record whole, with its arguments."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """Every record of every logger at every level, including the HTTP library's."""
    records = Records()
    loggers = [logging.getLogger(name) for name in (None, "noukai_core", "httpx", "httpcore", "asyncio")]
    before = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    loggers[0].addHandler(records)
    yield records.records
    loggers[0].removeHandler(records)
    for logger, level in before:
        logger.setLevel(level)


@pytest.fixture(params=KEYS, ids=["usual key", "key of odd characters"])
def marked(request: pytest.FixtureRequest) -> str:
    """A key that cannot be missed where it is shown."""
    return str(request.param)


def shown_by(value: object) -> str:
    """All that printing, formatting and pickling a value shows of it."""
    attributes = vars(value) if isinstance(value, BaseException) else ""
    return f"{value!r} {value} {value!s} {attributes}"


def reported_by(error: BaseException) -> str:
    """All that an error can carry into a log, a database or another process."""
    parts = ["".join(traceback.format_exception(error)), repr(error.args), repr(pickle.dumps(error))]
    chain: BaseException | None = error
    while chain is not None:
        parts += [shown_by(chain), repr(vars(chain))]
        chain = chain.__cause__ or chain.__context__
    return "\n".join(parts)


def locals_of(error: BaseException) -> str:
    """What a traceback with local variables shows inside of this package, as some log formatters print it."""
    summary = traceback.TracebackException.from_exception(error, capture_locals=True)
    frames = [frame for frame in summary.stack if "noukai_core" in frame.filename]
    assert frames
    return "\n".join(repr(frame.locals) for frame in frames)


@pytest.mark.parametrize("fault", [{"org": "acme"}, {"base_url": "nowhere"}, {"timeout": -1}])
def test_no_frame_of_a_refused_client_shows_the_key(
    scripted: MakeClient, marked: str, fault: dict[str, Any]
) -> None:
    """A traceback with local variables, as error reports have them, shows no key that a client was given."""
    with pytest.raises(InvalidInputError) as caught:
        scripted(api_key=marked, **fault)
    assert MARK not in locals_of(caught.value)
    with pytest.raises(InvalidInputError) as caught:
        scripted(api_key=f"Bearer {marked}")
    assert MARK not in locals_of(caught.value)


def test_nothing_that_is_made_shows_the_key(
    scripted: MakeClient, server: ScriptedServer, marked: str
) -> None:
    """Neither client nor flow, job, status or acceptance shows the key when printed."""
    server.on("poll", state("running"))
    client = scripted(api_key=marked)
    flow = client.flow(FLOW)
    job = flow.job(message="hello")
    for value in (client, flow, job, job.status(), job.accepted, job.flow):
        assert MARK not in shown_by(value)
        inside = vars(getattr(value, "_target", value)) if not isinstance(value, str) else {}
        assert MARK not in repr(inside)


def test_no_frame_of_an_interrupted_request_shows_the_key(
    scripted: MakeClient, marked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that strikes while a request is made finds no key among the local variables either."""

    def strike(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(httpx, "Request", strike)
    with pytest.raises(KeyboardInterrupt) as caught:
        scripted(api_key=marked).verify_key()
    assert "Authorization" in locals_of(caught.value)
    assert MARK not in locals_of(caught.value)


async def test_no_frame_of_a_cancelled_request_shows_the_key(marked: str) -> None:
    """Nor does one of the libraries below, when a request in progress is aborted."""
    sent = asyncio.Event()

    async def keep_waiting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(keep_waiting, "127.0.0.1", 0) as server:
        base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api/v1"
        async with AsyncNoukai(marked, base_url=base_url) as client:
            request = asyncio.create_task(client.verify_key())
            await sent.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await request
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    frames = [(frame.filename, repr(frame.locals)) for frame in shown.stack if frame.filename != __file__]
    assert any("Authorization" in values for _, values in frames)
    assert not [filename for filename, values in frames if MARK in values]


ECHOES: list[tuple[str, Callable[[str], HttpResponse]]] = [
    ("submit", lambda key: rejection(401, "INVALID_KEY", f"the key {key} is revoked")),
    ("submit", lambda key: rejection(400, f"BAD_{key}", "no")),
    ("submit", lambda key: respond(400, text=f"Authorization: Bearer {key}")),
    ("submit", lambda key: respond(422, json={"detail": [{"loc": ["header", key], "msg": f"{key}?"}]})),
    ("submit", lambda key: respond(400, json={"error": {"headers": {"Authorization": key}}})),
    ("submit", lambda key: respond(302, headers={"Location": f"https://elsewhere.test/?key={key}"})),
    ("submit", lambda key: respond(403, json={"detail": "no"}, headers={"X-Request-ID": key})),
    ("poll", lambda key: respond(200, html=f"<html>{key}</html>")),
    ("poll", lambda key: rejection(503, "X", f"proxy got {key}")),
    ("poll", lambda key: state("failed", error=f"step called with {key}")),
    ("poll", lambda key: state("failed", error={"code": key, "message": key})),
    ("poll", lambda key: state("failed", error=[key])),
    ("poll", lambda key: state(f"state {key}")),
    ("cancel", lambda key: respond(404, json={"detail": {"code": "X", "message": key}})),
    ("verify", lambda key: respond(401, headers={"WWW-Authenticate": f'Bearer token="{key}"'}, text=key)),
    ("trace", lambda key: rejection(403, "X", key)),
]


@pytest.mark.parametrize(
    ("call", "echo"), ECHOES, ids=[f"{call} {number}" for number, (call, _) in enumerate(ECHOES)]
)
def test_a_server_that_repeats_the_key_is_not_repeated(
    scripted: MakeClient,
    server: ScriptedServer,
    marked: str,
    call: str,
    echo: Callable[[str], HttpResponse],
    logged: list[logging.LogRecord],
) -> None:
    """A key in a response is removed from the error, its arguments, its pickle, its traceback and the log."""
    server.on(call, echo(marked))
    client = scripted(api_key=marked, retry_timeout=0.02, recovery_timeout=0.02)
    job = client.flow(FLOW).attach("job-1")
    acts: dict[str, Callable[[], Any]] = {
        "submit": lambda: client.flow(FLOW).job(message="hello"),
        "poll": lambda: job.wait(timeout_ms=100),
        "cancel": job.cancel,
        "verify": client.verify_key,
        "trace": job.trace,
    }
    with pytest.raises(NoukaiError) as caught:
        acts[call]()
    assert MARK not in reported_by(caught.value)
    assert MARK not in str(getattr(caught.value, "status", ""))
    assert_unlogged(logged)


@pytest.mark.parametrize("reported", [f"there is no key test_12345678_{MARK}", MARK, f"{KEYS[0]}{KEYS[0]}"])
def test_a_secret_without_its_prefix_is_not_repeated(
    scripted: MakeClient, server: ScriptedServer, reported: str
) -> None:
    """A server's message contains no part of the client's own key, not even without its prefix."""
    server.on(
        "submit",
        respond(
            403, json={"detail": {"code": reported, "message": reported}}, headers={"X-Request-ID": reported}
        ),
    )
    server.on("poll", state("failed", error=reported, createdAt=reported, progress={"said": reported}))
    flow = scripted(api_key=KEYS[0]).flow(FLOW)
    with pytest.raises(NoukaiError) as refused:
        flow.job(message="hello")
    with pytest.raises(JobFailedError) as failed:
        flow.attach("job-1").wait()
    for error in (refused.value, failed.value):
        assert MARK not in reported_by(error)
        assert MARK not in str(getattr(error, "status", ""))


FAULTS: list[HttpResponse | Exception] = [
    httpx.ReadTimeout("slow"),
    httpx.ConnectError("refused"),
    httpx.RemoteProtocolError("hung up"),
    rejection(500, "INTERNAL_ERROR"),
    rejection(403, "NO"),
    respond(200, text="nonsense"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=["timeout", "refused", "hung up", "500", "403", "nonsense"])
@pytest.mark.parametrize("call", ["submit", "poll", "cancel", "session"])
def test_no_error_carries_the_key(
    scripted: MakeClient,
    server: ScriptedServer,
    marked: str,
    call: str,
    fault: HttpResponse | Exception,
    logged: list[logging.LogRecord],
) -> None:
    """For every error of every call: the error, its causes, its frames and the log are clean."""
    server.on("submit", httpx.ReadTimeout("") if call == "session" else fault)
    for kind in ("poll", "cancel", "session"):
        server.on(kind, fault)
    client = scripted(api_key=marked, retry_timeout=0.02, recovery_timeout=0.02)
    job = client.flow(FLOW).attach("job-1")
    acts: dict[str, Callable[[], Any]] = {
        "submit": lambda: client.flow(FLOW).job(message="hello"),
        "session": lambda: client.flow(FLOW).job(message="hello"),
        "poll": lambda: job.wait(timeout_ms=20_000),
        "cancel": job.cancel,
    }
    try:
        acts[call]()
    except NoukaiError as error:
        assert MARK not in reported_by(error)
        assert MARK not in locals_of(error)
    else:
        assert call == "cancel"
    assert_unlogged(logged)


def test_a_real_server_gets_the_key_and_no_log_does(
    local: MakeClient, emulator: Emulator, logged: list[logging.LogRecord]
) -> None:
    """Over real HTTP the key is in no record of any logger, at any level, in no URL and in no request log."""
    emulator.control.script("grade-3", after_polls=2, outcome="failed", error="why")
    emulator.control.fault("status", on="poll", status=503, times=1)
    with local(api_key=KEYS[0]) as client:
        job = client.flow(FLOW).job(message="hello")
        with pytest.raises(JobFailedError) as caught:
            job.wait(timeout_ms=20_000)
        job.cancel()
    assert MARK not in reported_by(caught.value)
    assert any(record.name == "noukai_core" for record in logged)
    assert_unlogged(logged)


def assert_unlogged(logged: list[logging.LogRecord]) -> None:
    for record in logged:
        reported = f"{record.getMessage()} {record.args!r} {vars(record)!r}"
        if record.exc_info and record.exc_info[1]:
            reported += reported_by(record.exc_info[1])
        assert MARK not in reported, record.name


@pytest.mark.parametrize("broken", [f"sk-{MARK}", f"nk_{MARK}\n{MARK}", f"Bearer nk_{MARK}", f"nk_{MARK}ü"])
def test_a_broken_key_is_refused_unseen(scripted: MakeClient, server: ScriptedServer, broken: str) -> None:
    """The message about a key of the wrong shape shows nothing of it."""
    with pytest.raises(InvalidInputError) as caught:
        scripted(api_key=broken)
    assert MARK not in reported_by(caught.value)
    assert server.requests == []


def test_a_base_url_with_a_password_is_refused_unseen(scripted: MakeClient, server: ScriptedServer) -> None:
    """Credentials in a URL would appear in every log line, so they are rejected, and not shown."""
    with pytest.raises(InvalidInputError, match="base_url") as caught:
        scripted(base_url=f"https://user:{MARK}@noukai.test/api/v1")
    assert MARK not in reported_by(caught.value)


def test_a_client_is_neither_copied_nor_pickled_with_its_key(
    scripted: MakeClient, server: ScriptedServer, driver: str
) -> None:
    """Pickling a client or a job, as a careless task does with what it returns, says what to do instead."""
    client = scripted(api_key=KEYS[0])
    target: Any = client if driver == "sync" else client._target
    for one in (target, target.flow(FLOW), target.flow(FLOW).attach("job-1")):
        for act in (pickle.dumps, copy.deepcopy):
            with pytest.raises(
                TypeError, match="cannot be pickled or copied: pass the id of a job"
            ) as refused:
                act(one)
            assert MARK not in f"{refused.value!r} {refused.value}"


def test_a_failed_call_leaves_no_request_behind_in_its_error(
    scripted: MakeClient, server: ScriptedServer, marked: str
) -> None:
    """An error that is kept keeps no request and no transport alive, which hold the key."""
    server.on("submit", httpx.ConnectError("refused")).on("session", session())
    with pytest.raises(NoukaiError) as caught:
        scripted(api_key=marked, retry_timeout=0.05).flow(FLOW).job(message="hello")
    error = caught.value.with_traceback(None)
    assert error.__cause__ is None
    assert error.__context__ is None
    referents = [type(value).__name__ for value in gc.get_referents(error, error.__dict__)]
    assert not {"Request", "Response", "ConnectError"} & set(referents)


def test_a_name_that_holds_the_prefix_is_not_a_key() -> None:
    """An error still names the wrong parameter if its name contains the prefix of a key."""
    assert (
        without_keys("parameters.bank_account: field required") == "parameters.bank_account: field required"
    )
    for text in (f"key={KEYS[0]}", f"x{KEYS[0]}", f"'\\n{KEYS[1]}'", f"_nk_{MARK}", f"\\nnk_{MARK}"):
        assert MARK not in without_keys(text)
