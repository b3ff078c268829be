"""What lies between a client and the service: it drops, delays, truncates, duplicates and replaces."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from tests.simulation.choices import Choices
from tests.simulation.clock import Clock
from tests.simulation.pages import (
    ANOTHER_REQUEST,
    CUT_OFF,
    ELSEWHERE,
    FOREIGN_404,
    GATEWAY_ERRORS,
    OF_ANOTHER,
    OVERLOADED,
    REDIRECTS,
    REDIRECTS_AFTERWARDS,
    Response,
)
from tests.simulation.server import Server, ServerJob
from tests.simulation.story import Story

LATENCY = 0.02

CACHE_SECONDS = 90.0

NOT_SENT = "not sent"
"""No connection was made."""

NO_RESPONSE = "no response"
"""The connection broke."""

TIMED_OUT = "timed out"
"""The client gave up."""

End: TypeAlias = Response | str

FATES = (
    "delivered",
    "no connection",
    "lost on the way there",
    "reset on the way there",
    "lost on the way back",
    "reset on the way back",
    "truncated",
    "replaced by a 404",
    "answered by a gateway with a 404",
    "replaced by a gateway's error",
    "answered by a gateway with an error",
    "duplicated",
    "slow",
    "late",
    "answered by a gateway with a redirect",
    "replaced by a redirect",
    "out of step",
)


class Exchange:
    """One request of a client, and all that comes of it.

    Attributes:
        number: Which of the schedule's requests it is.
        kind: What it asks for: `submit`, `session`, `poll`, `cancel`, `trace` or `key`.
        process: The number of the process that sent it.
        submission: The identity that it carries, or whose session it asks for.
        sent_at: When it was sent.
        ended_at: When it ended for the client, be it because its process died.
        end: What came of it; `None` when nobody was there any more.
        received: When the service processed it.
        jobs: The jobs that it made.
    """

    __slots__ = (
        "_clock",
        "end",
        "ended_at",
        "headers",
        "jobs",
        "kind",
        "method",
        "number",
        "path",
        "process",
        "received",
        "sent_at",
        "submission",
    )

    def __init__(
        self, number: int, clock: Clock, process: int, method: str, path: str, headers: Mapping[str, str]
    ) -> None:
        self._clock = clock
        self.number = number
        self.process = process
        self.method = method
        self.path = path
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.kind = _kind(method, path)
        self.submission = (
            path.rpartition("/")[2] if self.kind == "session" else self.headers.get("idempotency-key", "")
        )
        self.sent_at = clock.now
        self.ended_at: float | None = None
        self.end: End | None = None
        self.received: list[float] = []
        self.jobs: list[ServerJob] = []

    def __str__(self) -> str:
        return f"request {self.number}, {self.kind} {self.job_id if self.kind == 'poll' else ''}".rstrip()

    @property
    def clock_now(self) -> float:
        """What time it is."""
        return self._clock.now

    @property
    def job_id(self) -> str:
        """The job that it is about."""
        parts = self.path.split("/")
        return parts[-2] if self.kind in ("cancel", "trace") else parts[-1]

    @property
    def session(self) -> str:
        """The session that it asks for, or in which it submits."""
        return self.submission if self.kind == "session" else self.headers.get("x-session-id", "")

    @property
    def surely_not_processed(self) -> bool:
        """Whether the client can tell that the service did nothing about it, or refused it."""
        if self.end == NOT_SENT:
            return True
        if not isinstance(self.end, Response):
            return False
        if self.end.status in (425, 429) or (not self.end.own and self.end.status in ELSEWHERE):
            return True
        return self.end.own and 400 <= self.end.status < 500 and self.end.status not in (408, 409)


def _kind(method: str, path: str) -> str:
    if path.startswith("seq/sessions/"):
        return "session"
    if path.endswith("/trace"):
        return "trace"
    if path.startswith("keys/"):
        return "key"
    if method == "GET":
        return "poll"
    return "cancel" if path.endswith("/cancel") else "submit"


class Network:
    """Carries requests and responses, more or less.

    Args:
        clock: The time.
        choices: What decides.
        server: The service.
        story: What is told of it.
        harm: How probable it is that something happens to a request.
        recovery_timeout: A request that arrives late does so within these seconds of its end for the client.

    Attributes:
        exchanges: All requests.
        harm: See above.
        crosses_submissions: Whether the response to one submission may go to another one.
        outage: From when until when no request reaches the service.
    """

    def __init__(
        self,
        clock: Clock,
        choices: Choices,
        server: Server,
        story: Story,
        harm: float,
        recovery_timeout: float,
    ) -> None:
        self._clock = clock
        self._choices = choices
        self._server = server
        self._story = story
        self.harm = harm
        self._recovery_timeout = recovery_timeout
        self.exchanges: list[Exchange] = []
        self._cut_off: set[int] = set()
        self._caches = harm > 0 and choices.happens("a cache before the service", 0.1)
        self._cached: dict[str, tuple[float, Response]] = {}
        self.crosses_submissions = False
        self.outage = (math.inf, math.inf)
        self._accepted: dict[str, Response] = {}

    def send(
        self,
        process: int,
        method: str,
        path: str,
        headers: Mapping[str, str],
        timeout: float,
        done: Callable[[End], None],
    ) -> Exchange:
        """Send a request, and call back with what comes of it, unless the exchange is abandoned before."""
        exchange = Exchange(len(self.exchanges) + 1, self._clock, process, method, path, headers)
        if process in self._cut_off:
            return exchange
        self.exchanges.append(exchange)
        if self.outage[0] <= exchange.sent_at < self.outage[1]:
            self._end_after(LATENCY, exchange, OVERLOADED, done)
            return exchange
        fate = self._choices.pick(f"fate of a {exchange.kind}", FATES, self.harm)
        if fate != FATES[0]:
            self._story.tell("{0}: {1}", exchange, fate)
        self._carry(exchange, fate, timeout, done)
        return exchange

    def abandon(self, exchange: Exchange) -> None:
        """Let nobody wait for a response any more; the request itself may be on its way."""
        if exchange.ended_at is None:
            exchange.ended_at = self._clock.now

    def cut_off(self, process: int) -> None:
        """Let a process that has died hear nothing any more, nor send."""
        for exchange in self.exchanges:
            if exchange.process == process:
                self.abandon(exchange)
        self._cut_off.add(process)

    def _carry(self, exchange: Exchange, fate: str, timeout: float, done: Callable[[End], None]) -> None:
        clock, kind = self._clock, exchange.kind
        match fate:
            case "no connection":
                self._end_after(LATENCY, exchange, NOT_SENT, done)
            case "lost on the way there":
                self._end_after(timeout, exchange, TIMED_OUT, done)
            case "reset on the way there":
                self._end_after(1.0, exchange, NO_RESPONSE, done)
            case "answered by a gateway with a 404":
                page = self._choices.pick(f"404 for a {kind}", FOREIGN_404)
                self._end_after(LATENCY, exchange, page, done)
            case "answered by a gateway with an error":
                page = self._choices.pick(f"gateway's page for a {kind}", GATEWAY_ERRORS)
                self._end_after(LATENCY, exchange, page, done)
            case "answered by a gateway with a redirect":
                page = self._choices.pick(f"redirect of a {kind}", REDIRECTS)
                self._end_after(LATENCY, exchange, page, done)
            case "late":
                self._end_after(timeout, exchange, TIMED_OUT, done)
                lateness = self._choices.pick(
                    f"lateness of a {kind}", (1.0, 20.0, self._recovery_timeout - 5)
                )
                clock.after(timeout + max(lateness, 0.0), lambda: self._receive_late(exchange))
            case _:
                delay = LATENCY
                if fate == "slow":
                    delay = timeout * self._choices.pick(f"slowness of a {kind}", (0.2, 0.5, 0.98))
                clock.after(delay, lambda: self._process(exchange, fate, timeout, done))

    def _process(self, exchange: Exchange, fate: str, timeout: float, done: Callable[[End], None]) -> None:
        if (response := self._receive_late(exchange)) is None:
            return
        kind = exchange.kind
        match fate:
            case "lost on the way back":
                self._end_after(exchange.sent_at + timeout - self._clock.now, exchange, TIMED_OUT, done)
                return
            case "reset on the way back":
                self._end_after(LATENCY, exchange, NO_RESPONSE, done)
                return
            case "truncated":
                response = Response(
                    response.status,
                    response.body[: len(response.body) // 2],
                    response.headers,
                    CUT_OFF,
                )
            case "replaced by a 404":
                response = self._choices.pick(f"404 for a {kind}", FOREIGN_404)
            case "replaced by a gateway's error":
                response = self._choices.pick(f"gateway's page for a {kind}", GATEWAY_ERRORS)
            case "replaced by a redirect":
                response = self._choices.pick(f"redirect of a {kind}", REDIRECTS_AFTERWARDS)
            case "out of step":
                response = self._of_another(exchange) or response
            # What the service has rejected, nobody sends again behind the client's back.
            case "duplicated" if not 400 <= response.status < 500:
                later = self._choices.pick(f"pause before the duplicate of a {kind}", (0.0, 0.5, 20.0))
                self._clock.after(later, lambda: self._receive_late(exchange))
        self._end_after(LATENCY, exchange, response, done)

    def _receive_late(self, exchange: Exchange) -> Response | None:
        """Let a request arrive, unless that is later than any assumption allows."""
        ended_at = exchange.ended_at
        if ended_at is not None and self._clock.now > max(ended_at + self._recovery_timeout - 2.0, ended_at):
            return None
        return self._receive(exchange)

    def _receive(self, exchange: Exchange) -> Response:
        response = self._from_cache(exchange) or self._server.respond(exchange)
        if self._caches and exchange.method == "GET" and response.own:
            self._cached[exchange.path] = (self._clock.now, response)
        if exchange.kind == "submit" and response.status < 300:
            self._accepted[exchange.submission] = response
        exchange.received.append(self._clock.now)
        if exchange.ended_at is not None or exchange.jobs:
            self._story.tell("{0}: the service answers {1}", exchange, response)
        return response

    def _of_another(self, exchange: Exchange) -> Response | None:
        """Return the response to another request, if there is one that the client may take for its own."""
        if exchange.kind != "submit":
            pages = OF_ANOTHER.get(exchange.kind)
            return self._choices.pick(f"of another {exchange.kind}", pages) if pages else None
        others = [
            accepted for submission, accepted in self._accepted.items() if submission != exchange.submission
        ]
        return replace(others[-1], origin=ANOTHER_REQUEST) if others and self.crosses_submissions else None

    def _from_cache(self, exchange: Exchange) -> Response | None:
        """Return what a cache has kept, although it was asked not to respond: it adds an `Age` at least."""
        if not self._caches or exchange.method != "GET" or exchange.path not in self._cached:
            return None
        stored_at, response = self._cached[exchange.path]
        age = self._clock.now - stored_at
        if not 1.0 <= age < CACHE_SECONDS:
            return None
        return Response(response.status, response.body, {**response.headers, "age": str(int(age))}, "cache")

    def _end_after(self, seconds: float, exchange: Exchange, end: End, done: Callable[[End], None]) -> None:
        def arrive() -> None:
            if exchange.ended_at is None:
                exchange.ended_at, exchange.end = self._clock.now, end
                self._story.tell("{0}: the client sees {1}", exchange, end)
                done(end)

        self._clock.after(max(seconds, 0.0), arrive)
