"""The service, written from its reference: what is documented, and a habit for everything that is not."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pydantic_core import to_json

from tests.simulation.choices import Choices
from tests.simulation.clock import EPOCH, Clock
from tests.simulation.pages import Response

if TYPE_CHECKING:
    from tests.simulation.network import Exchange

ORG_PROJECT_SLUG = ("acme", "spelling", "grade-3")
FLOW = "/".join(ORG_PROJECT_SLUG)

_JOBS = uuid.UUID(int=3)

COST = "0.01"
"""What a job costs, in US dollars."""

LISTING_LAGS = (0.0, 3.0, 20.0, 55.0, 58.0)
LATE_LAGS = (90.0, math.inf)

READABLE_IDS = ("executionId", "execution_id", "jobId", "job_id", "id")
UNREADABLE_IDS = ("runId", "uuid", "with a slash", "null", "object", "bare text")

TRIGGERS = ("job", "missing", "null", "JOB", "Job", "api", "async_job", "number")
SLUGS = ("slug", "missing", "null", "full path", "upper case", "display name")
LISTS = ("executions", "items", "by id", "null", "page with a cursor", "page with a total")
PAGES: Mapping[str, Mapping[str, Any]] = {
    "page with a cursor": {"nextCursor": "b2Zmc2V0"},
    "page with a total": {"total": 99},
}

ABSENCES = (
    "own 404",
    "empty list",
    "own 404 without a code",
    "FastAPI 404",
    "no route",
    "another flow's step",
)
KEYS = ("ignored", "same job", "409 while busy", "409 for ever")
SECOND_IDS = ("none", "another case", "other dashes", "a number")
SECOND_ID_PLACES = ("the list", "a poll", "the response to a submission", "one more row of the list")
CANCELS = ("202", "204", "405", "501", "FastAPI 404", "202, and ignored")

WORDS: tuple[Mapping[str, str], ...] = (
    {},
    {"completed": "COMPLETED", "failed": "FAILED", "cancelled": "CANCELLED", "running": "RUNNING"},
    {"completed": "succeeded", "failed": "error", "cancelled": "canceled"},
)


@dataclass(frozen=True, slots=True)
class Habits:
    """What the reference leaves open.

    Attributes:
        listing_lag: Seconds until a job shows in the list of its session.
        polling_lag: Seconds until a job's own route knows it.
        row_id: How a row of the list spells the id.
        trigger: How it spells `triggerType`.
        slug: How it spells the slug.
        listing: How the list itself is spelled.
        others: The kinds of other entries in the session.
        absence: What is answered for a session that holds nothing.
        key: What an idempotency key does.
        accepted_id: How the response to a submission spells the id.
        cancel: What the cancel route answers.
        words: Other words for states.
        state_name: The field of a state.
        clock_error: By how many seconds the service's clock is wrong.
        times_listed: How often the list has each job.
        forgets: How probable it is that a replica does not know a job that another one knew a moment ago.
        second_id: Which second id a job has.
        second_id_in: Where it shows.
    """

    listing_lag: float
    polling_lag: float
    row_id: str
    trigger: str
    slug: str
    listing: str
    others: tuple[str, ...]
    absence: str
    key: str
    accepted_id: str
    cancel: str
    words: Mapping[str, str]
    state_name: str
    clock_error: float
    times_listed: int
    forgets: float
    second_id: str
    second_id_in: str

    @classmethod
    def chosen(cls, choices: Choices, trouble: float) -> Habits:
        """Choose the habits of one schedule."""
        odd = choices.pick("oddness of the service", (0.0, 0.3), 0.8)
        return cls(
            listing_lag=choices.pick("listing lag", LISTING_LAGS + LATE_LAGS, 0.6),
            polling_lag=choices.pick("polling lag", (0.0, 2.0, 30.0, 55.0), 0.3),
            row_id=choices.pick("id in the list", READABLE_IDS + UNREADABLE_IDS, odd),
            trigger=choices.pick("triggerType in the list", TRIGGERS, odd),
            slug=choices.pick("slug in the list", SLUGS, odd),
            listing=choices.pick("form of the list", LISTS, 0.08),
            others=choices.pick("other entries", ((), ("step",), ("execute", "step")), 0.15),
            absence=choices.pick("absence", ABSENCES, 1.5 * odd),
            key=choices.pick("idempotency key", KEYS, 0.3),
            accepted_id=choices.pick("id of the accepted", READABLE_IDS + UNREADABLE_IDS, odd / 2),
            cancel=choices.pick("cancel route", CANCELS, 0.3),
            words=choices.pick("state words", WORDS, 0.2),
            state_name=choices.pick("state field", ("status", "state"), 0.1),
            clock_error=choices.pick("error of the service's clock", (0.0, 7200.0, -7200.0), 0.15),
            times_listed=choices.pick("times that the list has a job", (1, 2), 0.1),
            forgets=choices.pick("replicas that lag", (0.0, 0.2), 0.2) if trouble else 0.0,
            second_id=(second_id := choices.pick("second id of a job", SECOND_IDS, 0.1)),
            second_id_in=choices.pick("where it shows", SECOND_ID_PLACES) if second_id != "none" else "",
        )

    @property
    def readable(self) -> bool:
        """Whether the list is spelled as documented, up to the case and style of names."""
        return (
            self.row_id in READABLE_IDS
            and self.trigger in ("job", "missing", "null")
            and self.slug in ("slug", "missing", "null")
            and self.listing == "executions"
        )

    @property
    def recognisable(self) -> bool:
        """Whether a client can tell that the two ids of a job name the same one."""
        return self.second_id != "a number"

    @property
    def tells_absence(self) -> bool:
        """Whether the service says in its own form that a session holds no job."""
        return self.absence in ("own 404", "empty list", "another flow's step")


class ServerJob:
    """A job that the service runs.

    Attributes:
        id: Its id.
        session: The session that it was submitted under.
        exchange: The request that made it.
        created_at: When it was made.
        ends_at: When it ends by itself.
        final: The state in which it then is.
        cancelled_at: When it was cancelled.
        cancels: How often it was told to end.
        polled_at: When it was last polled with success.
        output: What it returns.
    """

    __slots__ = (
        "cancelled_at",
        "cancels",
        "created_at",
        "ends_at",
        "exchange",
        "final",
        "id",
        "key",
        "output",
        "polled_at",
        "session",
    )

    def __init__(self, job_id: str, session: str, key: str, exchange: Exchange, ends_at: float) -> None:
        self.id = job_id
        self.session = session
        self.key = key
        self.exchange = exchange
        self.created_at = exchange.clock_now
        self.ends_at = ends_at
        self.final = "completed"
        self.cancelled_at = math.inf
        self.cancels = 0
        self.polled_at = -math.inf
        self.output = {"answer": job_id}

    def state(self, now: float) -> str:
        """Return the state at a moment."""
        if min(self.cancelled_at, self.ends_at) > now:
            return "running" if now > self.created_at + 0.5 else "pending"
        return "cancelled" if self.cancelled_at < self.ends_at else self.final

    def finished(self, now: float) -> bool:
        """Whether it has ended."""
        return min(self.cancelled_at, self.ends_at) <= now


class Server:
    """The service.

    Args:
        clock: The time.
        choices: What decides.
        habits: What the reference leaves open.
        recovery_timeout: Seconds in which a job shows in the list, of a service that keeps what is
            documented.
        trouble: How probable it is that the service fails or refuses at a request.

    Attributes:
        jobs: All jobs, by id.
        traces: What the trace of a job tells: it is `empty`, has `costs` or `no costs`, or is `forbidden`.
        lists_in_time: Whether a job shows in the list of its session inside the recovery window, as is
            documented.
    """

    def __init__(
        self, clock: Clock, choices: Choices, habits: Habits, recovery_timeout: float, trouble: float
    ) -> None:
        self._clock = clock
        self._choices = choices
        self.habits = habits
        self._recovery_timeout = recovery_timeout
        self.trouble = trouble
        self.jobs: dict[str, ServerJob] = {}
        self.traces = "empty"
        # Without a look-up, nothing depends on when a job shows.
        self.lists_in_time = recovery_timeout == 0 or habits.listing_lag < recovery_timeout

    def respond(self, exchange: Exchange) -> Response:
        """Process a request that has arrived."""
        match exchange.kind:
            case "submit":
                return self._submit(exchange)
            case "session":
                return self._trouble(exchange) or self._session(exchange.path.rpartition("/")[2])
            case "cancel":
                return self._trouble(exchange) or self._cancel(exchange)
            case "poll":
                return self._trouble(exchange) or self._poll(exchange)
            case "trace":
                return self._trouble(exchange) or self._trace(exchange)
            case _:
                return self._trouble(exchange) or _own(200, {"org": "acme", "project": "spelling"})

    def new_job(self, exchange: Exchange, session: str, key: str) -> ServerJob:
        """Run one more job."""
        seconds = self._choices.pick("job runs for", (1.5, 0.0, 5.0, 40.0, 600.0), 0.5)
        job_id = self._choices.pick("job id", ("exec-{}", "job_{}", "fr_01HX{}"), 0.1).format(
            uuid.uuid5(_JOBS, str(len(self.jobs) + 1))
            if self.habits.second_id == "other dashes"
            else len(self.jobs) + 1
        )
        job = ServerJob(job_id, session, key, exchange, self._clock.now + seconds)
        job.final = self._choices.pick("job ends as", ("completed", "failed", "cancelled"), 0.2)
        self.jobs[job.id] = job
        exchange.jobs.append(job)
        return job

    def job_of(self, job_id: str) -> ServerJob | None:
        """Return a job by either of its ids."""
        job = self.jobs.get(job_id)
        if job is not None or self.habits.second_id == "none":
            return job
        return next((job for job in self.jobs.values() if self._second_id(job) == job_id), None)

    def id_in(self, place: str, job: ServerJob) -> str | int:
        """Return the id that a job has in a response."""
        if self.habits.second_id_in != place:
            return job.id
        second = self._second_id(job)
        return int(second) if self.habits.second_id == "a number" else second

    def ids(self, job: ServerJob) -> tuple[str, ...]:
        """Return the ids that a job is known by."""
        return (job.id,) if self.habits.second_id == "none" else (job.id, self._second_id(job))

    def _second_id(self, job: ServerJob) -> str:
        match self.habits.second_id:
            case "another case":
                return job.id.swapcase()
            case "other dashes":
                prefix, number = job.id[:-36], job.id[-36:]
                return f"{prefix}{number.replace('-', '')}"
            case _:
                return str(7_000_000 + list(self.jobs).index(job.id))

    def listed(self, job: ServerJob) -> bool:
        """Whether a job shows in the list of its session."""
        now = self._clock.now
        if now >= job.created_at + self.habits.listing_lag:
            return True
        # However late a request has arrived: what is documented counts from its end for the client.
        ended_at = job.exchange.ended_at
        return self.lists_in_time and ended_at is not None and now >= ended_at + self._recovery_timeout - 1.0

    def _known(self, job: ServerJob) -> bool:
        return self._clock.now >= job.created_at + self.habits.polling_lag or self.listed(job)

    def _trouble(self, exchange: Exchange) -> Response | None:
        """Return what the service answers when it fails or refuses without doing anything."""
        if not self._choices.happens(f"trouble of the service at {exchange.kind}", self.trouble):
            return None
        return self._choices.pick(f"trouble at {exchange.kind}", _TROUBLES)

    def _submit(self, exchange: Exchange) -> Response:
        headers = exchange.headers
        session, key = headers.get("x-session-id", ""), headers.get("idempotency-key", "")
        earlier = next((job for job in self.jobs.values() if job.key == key), None)
        if earlier is not None and self.habits.key != "ignored":
            busy = self.habits.key == "409 while busy" and self._clock.now < earlier.created_at + 40.0
            if busy or self.habits.key == "409 for ever":
                return _own_error(409, "CONFLICT", "this submission is being processed")
            return self._accepted(earlier)
        if self._choices.happens("trouble of the service at submit", self.trouble):
            fails, works = self._choices.pick("trouble at submit", _SUBMIT_TROUBLES)
            if not works:
                return fails
            self.new_job(exchange, session, key)
            return fails
        return self._accepted(self.new_job(exchange, session, key))

    def _accepted(self, job: ServerJob) -> Response:
        status = self._choices.pick("status of the accepted", (202, 200, 201), 0.1)
        if self.habits.accepted_id == "bare text":
            return _own(status, self.id_in("the response to a submission", job))
        spelled = _spelled_id(self.habits.accepted_id, self.id_in("the response to a submission", job))
        return _own(status, {**spelled, "status": "started", "flowId": "flow-1", "blockCount": 3})

    def _session(self, session: str) -> Response:
        habits = self.habits
        if habits.absence == "no route":
            return _own(404, {"detail": "Not Found"})
        mine = [job for job in self.jobs.values() if job.session == session and self.listed(job)]
        rows = [self._row(job, self.id_in("the list", job)) for job in mine] * habits.times_listed
        if habits.second_id_in == "one more row of the list":
            rows += [self._row(job, self._second_id(job)) for job in mine]
        if not rows:
            match habits.absence:
                case "own 404":
                    return _own_error(404, "SESSION_NOT_FOUND", "no such session", proves_absence=True)
                case "own 404 without a code":
                    return _own(404, {"detail": "Session not found"})
                case "FastAPI 404":
                    return _own(404, {"detail": "Not Found"})
        others = (*habits.others, "step") if habits.absence == "another flow's step" else habits.others
        rows[:0] = [_other(kind, number) for number, kind in enumerate(others)]
        page: Mapping[str, Any] = {}
        match habits.listing:
            case "page with a cursor" | "page with a total" if mine:
                listed: Any = [] if habits.times_listed == 1 else rows
                page = PAGES[habits.listing]
            case "by id":
                listed = {str(number): row for number, row in enumerate(rows)}
            case "null" if not mine:
                listed = None
            case _:
                listed = rows
        name = "items" if habits.listing == "items" else "executions"
        page = _own(
            200,
            {"sessionId": session, name: listed, **page},
            proves_absence=not mine and habits.listing in ("executions", *PAGES),
        )
        readable = habits.listing == "executions" or (habits.listing == "null" and mine)
        return replace(page, listed=frozenset(job.key for job in mine)) if readable else page

    def _row(self, job: ServerJob, job_id: str | int) -> Any:
        habits = self.habits
        if habits.row_id == "bare text":
            return job_id
        row: dict[str, Any] = {**_spelled_id(habits.row_id, job_id), "flowId": "flow-1"}
        org, project, slug = ORG_PROJECT_SLUG
        slugs = {
            "slug": slug,
            "null": None,
            "full path": f"{org}/{project}/{slug}",
            "upper case": slug.upper(),
            "display name": "Spelling, Grade 3",
        }
        if habits.slug in slugs:
            row["slug"] = slugs[habits.slug]
        if habits.trigger != "missing":
            row["triggerType"] = {"null": None, "number": 3}.get(habits.trigger, habits.trigger)
        row["status"] = self._word(job)
        row["startedAt"] = self._stamp(job.created_at)
        row["snapshotsAvailable"] = False
        return row

    def _stamp(self, moment: float) -> str:
        return datetime.fromtimestamp(EPOCH + moment + self.habits.clock_error, UTC).isoformat()

    def _word(self, job: ServerJob) -> str:
        state = job.state(self._clock.now)
        return self.habits.words.get(state, state)

    def _job(self, exchange: Exchange, place: int) -> ServerJob | None:
        job = self.job_of(unquote(exchange.path.split("/")[place]))
        return job if job is not None and self._known(job) else None

    def _poll(self, exchange: Exchange) -> Response:
        job = self._job(exchange, -1)
        if job is None:
            return _own_error(404, "JOB_NOT_FOUND", "no such job")
        lags = self._clock.now < job.polled_at + 30.0 and self.habits.forgets
        if lags and self._choices.happens("a replica does not know the job", self.habits.forgets):
            return _own_error(404, "JOB_NOT_FOUND", "no such job")
        job.polled_at = self._clock.now
        job_id = self.id_in("a poll", job)
        value: dict[str, Any] = {"executionId": job_id, self.habits.state_name: self._word(job)}
        if self.habits.clock_error:
            value |= {"createdAt": self._stamp(job.created_at), "progress": 0.5}
        if job.finished(self._clock.now):
            state = job.state(self._clock.now)
            if state == "completed":
                value["result"] = job.output
            elif state == "failed":
                value["error"] = "a step failed"
        asked = unquote(exchange.path.rpartition("/")[2])
        response = _own(200, value)
        if self.habits.recognisable or str(job_id) == asked:
            return response
        return replace(response, recognisable=False)

    def _trace(self, exchange: Exchange) -> Response:
        if self.traces == "empty":
            return _own(200, {"flowRun": {"status": "running"}, "steps": []})
        if self.traces == "forbidden":
            return _own_error(403, "FORBIDDEN", "no traces for this key")
        job = self._job(exchange, -2)
        if job is None:
            return _own_error(404, "JOB_NOT_FOUND", "no such job")
        step: dict[str, Any] = {"stepId": "grade", "status": "completed", "modelUsed": "m", "tokens": 10}
        if self.traces == "costs":
            step["costUsd"] = COST
        steps = [step] if job.finished(self._clock.now) else []
        return _own(200, {"flowRun": {"status": self._word(job)}, "steps": steps})

    def _cancel(self, exchange: Exchange) -> Response:
        match self.habits.cancel:
            case "405":
                return _own(405, {"detail": "Method Not Allowed"})
            case "501":
                return _own_error(501, "NOT_IMPLEMENTED", "no cancel")
            case "FastAPI 404":
                return _own(404, {"detail": "Not Found"})
        job = self._job(exchange, -2)
        if job is None:
            code = self._choices.pick("code for an unknown job", ("JOB_NOT_FOUND", "RUN_NOT_FOUND"), 0.5)
            return _own_error(404, code, "no such job")
        if job.finished(self._clock.now):
            return _own_error(
                self._choices.pick("cancel of the ended", (409, 410)), "FINISHED", "it has ended"
            )
        job.cancels += 1
        if self.habits.cancel != "202, and ignored":
            job.cancelled_at = min(
                job.cancelled_at, self._clock.now + self._choices.pick("cancel takes", (0.0, 5.0), 0.3)
            )
        return _own(int(self.habits.cancel[:3]), {"executionId": job.id, "status": "cancelled"})


def _own(status: int, value: Any, *, proves_absence: bool = False, **headers: str) -> Response:
    body = to_json(value)
    return Response(
        status, body, {"content-type": "application/json", **headers}, proves_absence=proves_absence
    )


def _own_error(
    status: int, code: str, message: str, *, proves_absence: bool = False, **headers: str
) -> Response:
    value = {"detail": {"code": code, "message": message}}
    return _own(status, value, proves_absence=proves_absence, **headers)


def _spelled_id(name: str, job_id: str | int) -> dict[str, Any]:
    match name:
        case "with a slash":
            return {"executionId": f"exec/{job_id}"}
        case "null":
            return {"executionId": None}
        case "object":
            return {"executionId": {"value": job_id}}
        case _:
            return {name: job_id}


def _other(kind: str, number: int) -> dict[str, Any]:
    return {"executionId": f"{kind}-{number}", "slug": "grade-3", "triggerType": kind, "status": "completed"}


_RETRY_AFTER = {"retry-after": "2"}

_LATER = "Tue, 01 Jan 2030 12:00:02 GMT"
_SERVERS_DATE = {"date": "Tue, 01 Jan 2030 12:00:00 GMT", "retry-after": _LATER}

_TROUBLES = (
    _own_error(503, "UNAVAILABLE", "try again"),
    _own_error(500, "INTERNAL_ERROR", "oops"),
    _own_error(429, "RATE_LIMITED", "slow down"),
    _own_error(429, "RATE_LIMITED", "slow down", **_RETRY_AFTER),
    _own_error(503, "UNAVAILABLE", "try again", **_RETRY_AFTER),
    _own_error(429, "RATE_LIMITED", "slow down", **_SERVERS_DATE),
    _own_error(503, "UNAVAILABLE", "try again", **{"retry-after": "-5"}),
    _own_error(503, "UNAVAILABLE", "try again", **{"retry-after": "86400"}),
)

_SUBMIT_TROUBLES = (
    # What is answered, and whether it took effect all the same.
    (_own_error(503, "UNAVAILABLE", "try again"), False),
    (_own_error(503, "UNAVAILABLE", "try again"), True),
    (_own_error(503, "UNAVAILABLE", "try again", **_RETRY_AFTER), True),
    (_own_error(503, "UNAVAILABLE", "try again", **_RETRY_AFTER), False),
    (_own_error(500, "INTERNAL_ERROR", "oops"), False),
    (_own_error(500, "INTERNAL_ERROR", "oops"), True),
    (_own_error(429, "RATE_LIMITED", "slow down"), False),
    (_own_error(429, "RATE_LIMITED", "slow down", **_RETRY_AFTER), False),
    (_own_error(429, "RATE_LIMITED", "slow down", **_SERVERS_DATE), False),
    (_own_error(429, "RATE_LIMITED", "slow down", **{"retry-after": "soon"}), False),
    (_own_error(503, "UNAVAILABLE", "try again", **{"retry-after": "86400"}), True),
    (_own_error(402, "INSUFFICIENT_CREDITS", "no credits"), False),
    (_own_error(404, "FLOW_NOT_FOUND", "no such flow"), False),
    (_own_error(422, "MISSING_MESSAGE", "no message"), False),
)
