"""Any response, to any call: it ends in a value, in one of our errors, or at the deadline.

`FUZZ_EXAMPLES=5000` searches longer than `make test` has time for; a failure prints how to repeat it.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noukai_core import Noukai, NoukaiError, RunTrace
from tests.core.scripted_server import FLOW, kind_of
from tests.fuzz.drivers import DRIVERS, client_of
from tests.fuzz.nonsense import KEY, MARK, Given, fuzzed, responses, scripts
from tests.fuzz.server import TAKEN, UNCLEAR, Server
from tests.fuzz.virtual_clock import turned_time

# A call whose responses are too long to be shown in full has failed for another reason.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

URL = "https://noukai.test/api/v1"
QUICK = 5.0
WAIT = 600.0
# For five minutes, a rejected submission is sent again; after each of three ambiguous outcomes, its job is
# looked up, which takes up to a minute and a half.
SUBMISSION = 300.0 + 3 * 90.0

Act = Callable[[Any], Any]


class Case(NamedTuple):
    """A call, the kind of its nonsensical responses, and how many seconds it may take."""

    kind: str
    seconds: float
    act: Act
    before: tuple[Given, ...] = ()


CASES = {
    "submit": Case("submit", SUBMISSION, lambda client: client.flow(FLOW).job("hello")),
    "poll": Case("poll", QUICK, lambda client: client.flow(FLOW).attach("job-1").status()),
    "wait": Case("poll", WAIT, lambda client: client.flow(FLOW).attach("job-1").wait(timeout_ms=WAIT * 1000)),
    "cancel": Case("cancel", QUICK, lambda client: client.flow(FLOW).attach("job-1").cancel()),
    "recover": Case("session", SUBMISSION, lambda client: client.flow(FLOW).job("hello"), (UNCLEAR, TAKEN)),
    "trace": Case("trace", QUICK, lambda client: client.flow(FLOW).attach("job-1").trace()),
    "check the key": Case("verify", QUICK, lambda client: client.verify_key()),
}


def most_requests(seconds: float) -> float:
    """How many requests fit into this many seconds, with the shortest pause before each of them."""
    return 2.5 * seconds + 2


class Log(logging.Handler):
    """Keeps all that is logged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def nothing_reported() -> Iterator[None]:
    """Let a call end as it likes, unless an error is none of ours, or an error or the log shows the key."""
    log, logger = Log(), logging.getLogger("noukai_core")
    logger.addHandler(log)
    try:
        yield
    except NoukaiError as error:
        log.lines += [*traceback.format_exception(error), repr(error), repr(vars(error))]
        assert len(str(error)) < 10_000
    finally:
        logger.removeHandler(log)
    assert MARK not in "".join(log.lines)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", CASES)
def test_any_response(name: str, driver: str) -> None:
    """Whatever replaces a response, the call ends in time: in a value, or in an error without key."""
    case = CASES[name]

    @fuzzed()
    @given(scripts(case.kind))
    def check(script: list[Given]) -> None:
        server = Server(most_requests(case.seconds), **{"submit": [*case.before], case.kind: script})
        with turned_time() as clock, nothing_reported():
            began = clock.now
            try:
                with client_of(
                    driver, clock.loop, api_key=KEY, base_url=URL, transport=server.transport
                ) as client:
                    value = case.act(client)
                if isinstance(value, RunTrace):
                    assert repr((value.total_tokens, value.cost_usd))
            finally:
                assert clock.now - began <= case.seconds

    check()


@fuzzed()
@given(st.lists(responses("submit"), max_size=2), scripts("session"), scripts("poll"))
def test_responses_that_contradict_one_another(
    submit: list[Given], session: list[Given], poll: list[Given]
) -> None:
    """Whatever the responses during a job's life, each submission of it has the same id."""
    server = Server(most_requests(SUBMISSION + WAIT), submit=[*submit, TAKEN], session=session, poll=poll)
    with turned_time(), nothing_reported(), Noukai(KEY, base_url=URL, transport=server.transport) as client:
        client.flow(FLOW).job("hello").wait(timeout_ms=WAIT * 1000)
    sent = [request.headers for request in server.requests if kind_of(request) == "submit"]
    assert len({headers[name] for headers in sent for name in ("X-Session-Id", "Idempotency-Key")}) == 1
